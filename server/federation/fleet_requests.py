"""Which site a request to Flower's Fleet API comes from, and whether it may pass."""

import base64
import binascii
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.exceptions import UnsupportedAlgorithm
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.types import Scope

from medfed.server.federation.http import header
from medfed.server.federation.registry import Registry

PUSH_MESSAGES = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"
PULL_MESSAGES = "/v1/fleet/pull-messages"

# register-node and unregister-node are the coordinator's to do, and on no list.
FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)

# Flower cuts objects into 5 MB and adds little.
MAX_REQUEST_BYTES = 16 * 1024 * 1024


class RefusedError(Exception):
    """A request that does not pass; `site` only if it was proven to come from there."""

    def __init__(self, status: int, reason: str, site: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.site = site


def sender(scope: Scope, registry: Registry) -> str:
    """Return the approved site whose node key signed the request.

    Flower looks at the signature too, but only after it has read the body, and it knows no site
    that was revoked a moment ago.

    Raises:
        RefusedError: With 401.
    """
    key = _decoded(scope, FLEET_HTTP_PUBLIC_KEY_HEADER)
    record = registry.by_node_key(key)
    if record is None:
        raise RefusedError(401, "unknown node key")
    stated = header(scope, TIMESTAMP_HEADER.encode()) or b""
    signature = _decoded(scope, FLEET_HTTP_SIGNATURE_HEADER)
    try:
        is_signed = verify_signature(bytes_to_public_key(key), stated, signature)
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        is_signed = False
    if not is_signed:
        raise RefusedError(401, f"the signature is not that of site {record.name}")
    if record.state != "approved":
        raise RefusedError(401, f"the site is {record.state}", record.name)
    _check_time(stated, record.name)
    return record.name


def _decoded(scope: Scope, name: str) -> bytes:
    value = header(scope, name.encode())
    if value is None:
        raise RefusedError(401, "no node key")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise RefusedError(401, "no node key") from None


def _check_time(stated: bytes, site: str) -> None:
    try:
        signed_at = datetime.fromisoformat(stated.decode("ascii"))
        age = (datetime.now(UTC) - signed_at).total_seconds()
    except (ValueError, TypeError):
        raise RefusedError(401, "no time", site) from None
    if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
        raise RefusedError(401, f"the site's clock differs by {-age:+.0f} s", site)


def check_headers(scope: Scope, site: str) -> None:
    """Check what Flower expects of every Fleet request's headers.

    Raises:
        RefusedError: With 415.
    """
    media_type = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != PROTOBUF_MEDIA_TYPE.encode():
        raise RefusedError(415, "not a protobuf message", site)


def check_push(body: bytes, site: str) -> None:
    """Check that a site pushes one reply, and in its own name.

    Flower compares the sender named in a reply with the receiver of what it replies to, and not
    with the node that pushes it.

    Raises:
        RefusedError: With 400.
    """
    request = PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise RefusedError(400, "malformed protobuf", site) from None
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise RefusedError(400, "expected one message and its objects", site)
    metadata = request.messages_list[0].metadata
    if metadata.src_node_id != request.node.node_id or not metadata.reply_to_message_id:
        raise RefusedError(400, "a message that is no reply of this site", site)


@dataclass
class Uploads:
    """How much each site has sent since it was given its last message to answer.

    What a site announces starts no new count: it could announce as often as it likes.
    """

    limit_bytes: float
    _sent: dict[str, int] = field(default_factory=dict)

    def allow(self, site: str) -> None:
        """Begin to count anew: the site was given a message."""
        self._sent.pop(site, None)

    def count(self, site: str, path: str, num_bytes: int) -> None:
        """Add a request's body, if it is part of an answer.

        Nothing else is held back: a site whose answer was too large goes on with the next message.

        Raises:
            RefusedError: With 413: the answer is larger than allowed.
        """
        if path not in (PUSH_MESSAGES, PUSH_OBJECT):
            return
        self._sent[site] = self._sent.get(site, 0) + num_bytes
        if self._sent[site] > self.limit_bytes:
            limit_mb = self.limit_bytes / 1e6
            raise RefusedError(413, f"a message of more than {limit_mb:g} MB", site)
