"""A stretch of network between a site and the coordinator, which a test can cut and heal."""

import contextlib
import socket
import threading
from typing import Self

from ports import free_port

_CHUNK = 1 << 14


class Forwarder:
    """Passes TCP connections on to a port of this machine.

    Args:
        target: The port.

    Attributes:
        port: Where it listens, on loopback.
        stuck: Set once a hang that was asked for has begun.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.stuck = threading.Event()
        self._target = target
        self._flows = threading.Event()
        self._flows.set()
        self._allowed: int | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._flows.set()

    def hang(self, after_bytes: int = 0) -> None:
        """Let nothing through any more once a site has sent so many bytes; nobody is told."""
        with self._lock:
            self._allowed = after_bytes
        if not after_bytes:
            self._stick()

    def cut(self) -> None:
        """Close all connections and take no new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            sockets = [*self._open, *([listener] if listener else [])]
            self._open = set()
        for one in sockets:
            # Closing alone would leave a thread that waits for it waiting.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def heal(self) -> None:
        """Let everything through again; what hung flows on."""
        with self._lock:
            self._allowed = None
            closed = self._listener is None
        self.stuck.clear()
        self._flows.set()
        if closed:
            listener = socket.create_server(("127.0.0.1", self.port))
            self._listener = listener
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stick(self) -> None:
        self._flows.clear()
        self.stuck.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    self._open |= {near, far}
                for source, sink, is_up in ((near, far, True), (far, near, False)):
                    arguments = (source, sink, is_up)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if is_up:
                    self._count(len(data))
                self._flows.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._lock:
            self._open -= {source, sink}

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            if self._allowed is None:
                return
            self._allowed -= num_bytes
            if self._allowed > 0:
                return
        self._stick()
