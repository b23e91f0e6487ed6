"""A site of our own making, on Flower's real Fleet API: as light, or as wicked, as is needed.

It connects as an approved site does (TLS, its own key) and answers messages with whatever the test
makes of them.
"""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

Answer = Callable[[Message], Message]
_POLL_S = 0.5


class FakeSite:
    """One connection, served by a thread.

    Args:
        address: host:port of the coordinator.
        ca: The coordinator's certificate authority.
        key: The site's private key, an OpenSSH file.
        answer: Makes the reply to a message.

    Attributes:
        failures: What went wrong in sending, oldest first.
    """

    def __init__(self, address: str, ca: Path, key: Path, answer: Answer) -> None:
        private = load_ssh_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self._connect = partial(
            http_request_response,
            address,
            False,
            ca.read_bytes(),
            (private, private.public_key()),
            max_retries=3,
        )
        self._answer = answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.connected = threading.Event()
        self.failures: list[BaseException] = []

    def __enter__(self) -> "FakeSite":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _serve(self) -> None:
        with self._connect() as connection:
            _, receive, send, _, _, pull, push, confirm = connection
            self.connected.set()
            while not self._stop.is_set():
                try:
                    received = receive()
                except BaseException as error:
                    self.failures.append(error)
                    self._stop.wait(_POLL_S)
                    continue
                if received is None:
                    self._stop.wait(_POLL_S)
                    continue
                head, tree = received
                run = head.metadata.run_id
                try:
                    asked = pull_and_inflate_object_from_tree(
                        tree, partial(pull, run), partial(confirm, run), return_type=Message
                    )
                    asked.metadata.__dict__["_message_id"] = tree.object_id
                    reply = self._answer(asked)
                    self._send(reply, send, push)
                except RunNotRunningException:
                    continue
                except Exception as error:
                    self.failures.append(error)

    @staticmethod
    def _send(
        reply: Message,
        send: Callable[..., tuple[set[str], str]],
        push: Callable[[int, str, str, bytes], None],
    ) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            for name, part in get_all_nested_objects(reply).items():
                if name in wanted:
                    push(reply.metadata.run_id, session, name, part.deflate())
