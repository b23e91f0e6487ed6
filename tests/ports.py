"""Ports of loopback for servers that tests start."""

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_DEFAULT_EPHEMERAL = 32_768
_TRIES = 100

# From the system: pytest-randomly and tests that seed `random` must not give two workers one port.
_random = random.SystemRandom()


def free_port() -> int:
    """Return a port that nothing listens on.

    It lies below those that the system gives to connections: such a port can be another process's
    by the time the server that is meant for it starts.
    """
    end = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else _DEFAULT_EPHEMERAL
    end = end if end > 2 * _LOWEST else _DEFAULT_EPHEMERAL
    for _ in range(_TRIES):
        port = _random.randrange(_LOWEST, end)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"None of {_TRIES} ports between {_LOWEST} and {end} is free.")


def free_ports(number: int) -> list[int]:
    """Return `number` ports, all different."""
    ports: set[int] = set()
    while len(ports) < number:
        ports.add(free_port())
    return list(ports)
