"""Opens a port, or says what is wrong."""

import socket

from medfed.common.errors import RunError


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address.

    Raises:
        RunError: It is taken, or not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # One that was closed a moment ago may be opened again; one that listens may not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise RunError(
            f"Port {port} on {host} cannot be opened ({error.strerror}). Stop what uses it, or "
            "set another port in federation.toml."
        ) from None
    return listener
