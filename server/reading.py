"""Takes replies from a SuperLink, trusting nothing that a site sent.

Flower's own `HttpGrid.pull_messages` believes what a reply says of itself, not what its SuperLink
was told when the reply was announced (so a member could answer in another's name); it unfolds
whatever it is given (a kilobyte can stand for a terabyte); bytes that are no message end the
ServerApp; and a reply that is announced and never sent is waited for for minutes, in which no other
site is heard. Here a reply is read once all its pieces are there, is measured before it is
unfolded, and must be what was announced.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from medfed.common.errors import MessageError
from medfed.common.messages.unfolding import check_unfolded
from medfed.server.exchange import UNREADABLE

_STATED = (
    *("run_id", "src_node_id", "dst_node_id", "reply_to_message_id"),
    *("group_id", "message_type"),
)


@dataclass
class _Announced:
    """A reply that the SuperLink handed over, and not all of whose pieces were there so far.

    Attributes:
        metadata: As the SuperLink was told; it knows the sender.
        pieces: The hashes of all pieces.
        unseen: Those that were not seen to be there.
        is_short: Whether one was found to be missing.
    """

    metadata: Metadata
    pieces: tuple[str, ...]
    unseen: set[str] = field(default_factory=set)
    is_short: bool = False


class _MissingError(Exception):
    """A piece is not there yet."""


class Reader:
    """Pulls replies through `grid`, none of which may take more than `most_bytes`."""

    def __init__(self, grid: HttpGrid, most_bytes: float) -> None:
        self._grid = grid
        self._most_bytes = most_bytes
        self._announced: dict[str, _Announced] = {}

    def pull(self, identifiers: Iterable[str]) -> Iterator[Message]:
        """Yield those replies to the messages `identifiers` that are there as a whole."""
        wanted = set(identifiers)
        self._claim(wanted)
        for own, announced in list(self._announced.items()):
            if announced.metadata.reply_to_message_id in wanted:
                reply = self._read(own, announced)
                if reply is not None:
                    del self._announced[own]
                    yield reply

    def _claim(self, wanted: set[str]) -> None:
        """Ask for what was announced. A SuperLink hands each reply over once."""
        claimed = {known.metadata.reply_to_message_id for known in self._announced.values()}
        if not wanted - claimed:
            return
        request = PullAppMessagesRequest(message_ids=sorted(wanted - claimed))
        found = self._grid._runtime_client.PullMessages(request)
        for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            pieces = tuple(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            metadata = message_from_proto(message).metadata
            metadata.__dict__["_message_id"] = message.metadata.message_id
            announced = _Announced(metadata, pieces, set(pieces))
            self._announced[message.metadata.message_id] = announced

    def _read(self, own: str, announced: _Announced) -> Message | None:
        """Return a reply, or an error in its place; None while pieces of it are missing."""
        run = announced.metadata.run_id
        client, node = self._grid._runtime_client, self._grid.node
        pull = make_pull_object_fn_protobuf(client.PullObject, node, run)
        try:
            contents = _contents(announced, pull)
        except ObjectPullError:  # the upload was given up
            return _error(announced, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        if contents is None:
            return None
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=own)
        )
        try:
            check_unfolded(contents, self._most_bytes)
            message = inflate_object_from_contents(own, contents)
            if not isinstance(message, Message):
                raise MessageError(f"Expected a message, got {type(message).__name__}.")
            for name in _STATED:
                if getattr(message.metadata, name) != getattr(announced.metadata, name):
                    raise MessageError(f"Its {name} is not what was announced.")
        except Exception:  # whatever bytes a site can make
            return _error(announced, UNREADABLE)
        message.metadata.__dict__["_message_id"] = own
        return message


def _contents(announced: _Announced, pull: Callable[[str], bytes]) -> dict[str, bytes] | None:
    """Return all pieces by hash, or None while one is missing. Nothing is held in between."""

    def see(piece: str) -> bytes:
        try:
            content = pull(piece)
        except ObjectUnavailableError:
            raise _MissingError from None
        announced.unseen.discard(piece)
        return content

    # Several at a time: a SuperLink takes long to answer, whatever is asked.
    try:
        if announced.is_short:
            pull_objects(list(announced.unseen), see)
        return pull_objects(list(announced.pieces), see)
    except _MissingError:
        announced.is_short = True
        return None


def _error(announced: _Announced, code: int) -> Message:
    return make_message(metadata=announced.metadata, error=Error(code, ""))
