"""Where a coordinator is reached: `host:port`."""

import ipaddress
import re

from medfed.common.errors import FederationError

DEFAULT_PORT = 8443
_ADDRESS = re.compile(
    r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; the port may be left out.

    Raises:
        FederationError: Not a host name or IP address, or no port number.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts:
        host, port = parts["six"] or parts["host"], parts["port"] or str(DEFAULT_PORT)
    else:
        host, port = address, str(DEFAULT_PORT)  # an IPv6 address without brackets
    fits = is_ip(host) if parts is None or parts["six"] else is_ip(host) or is_host_name(host)
    if not (fits and 0 < int(port) < 65536):
        raise FederationError(
            f"Expected the address of the coordinator as HOST:PORT, such as "
            f"fed.example.org:{DEFAULT_PORT} or 192.0.2.7:{DEFAULT_PORT}, got {address[:80]!r}."
        )
    return host.lower(), int(port)


def join_address(host: str, port: int) -> str:
    """Return `host:port` as URLs have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(host: str) -> bool:
    """Whether `host` is an IP address, version 4 or 6."""
    try:
        # A zone (fe80::1%eth0) means something on one machine only.
        return "%" not in host and bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def is_host_name(host: str) -> bool:
    """Whether `host` is a DNS name: ASCII, names in other scripts in their xn-- form."""
    labels = host.split(".")
    # All digits: an IP address with a mistake in it.
    return (
        len(host) <= 253
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdecimal()
    )
