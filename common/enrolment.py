"""What a site and its coordinator agree on while the site joins: requests, answers, fingerprints.

A request is JSON that the site signed: every field but the signatures, in the one spelling of
`canonical`, after a line that says what it is for. To enrol, both of the site's keys sign; from
then on its node key does. Nothing private is in any of them but the token of the invite, which is
good for one enrolment.

The fingerprint covers the site's keys and also what the site was told to trust. Whoever changed an
invite on its way, or put himself between the two, makes the two sides read different ones.
"""

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from medfed.common.errors import FederationError
from medfed.common.ledger.chain import canonical
from medfed.common.ledger.keys import public_hex
from medfed.common.study import Name

ENROLL, STATE, LEAVE = "/medfed/v1/enroll", "/medfed/v1/state", "/medfed/v1/leave"
MAX_BODY_BYTES = 65536
CLOCK_TOLERANCE_S = 300.0

Action = Literal["enroll", "state", "leave"]
State = Literal["invited", "enrolled", "approved", "revoked", "left"]
"""invited: has a token. enrolled: sent its keys, waits for approval. approved: may connect.
revoked, left: may not; needs a new invite."""


_NAME: TypeAdapter[str] = TypeAdapter(Name)


def check_name(name: str) -> str:
    """Return a site's or federation's name, which is then safe as a file's.

    Raises:
        FederationError: It is none.
    """
    try:
        return _NAME.validate_python(name, strict=True)
    except ValidationError:
        raise FederationError(
            "Expected a name of up to 64 letters, digits, dots, dashes and underscores that "
            f"begins with a letter or digit, got {name[:80]!r}."
        ) from None


def write_moment(moment: datetime) -> str:
    """Return a time as requests, invites and records state it: UTC, microseconds."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _moment(text: str) -> str:
    try:
        normal = write_moment(datetime.fromisoformat(text))
    except OverflowError:  # the first and last hours of the calendar
        normal = ""
    if normal != text:
        raise ValueError("expected a time in UTC with microseconds")
    return text


def _node_key(line: str) -> str:
    try:
        key = load_ssh_public_key(line.encode())
    except UnsupportedAlgorithm:
        raise ValueError("expected a key of a known kind") from None
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise ValueError("expected a key on the curve P-384")
    if node_key_line(key) != line:
        raise ValueError("expected the key alone, without a comment")
    return line


Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
Moment = Annotated[str, Field(max_length=40), AfterValidator(_moment)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{4}(-[0-9a-f]{4}){5}$")]
Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+-]{0,31}$")]
NodeKey = Annotated[str, Field(max_length=400), AfterValidator(_node_key)]
_EcSignature = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){8,110}$")]
_EdSignature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class _Wire(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class SiteRequest(_Wire):
    """A site asks for its state, or leaves."""

    site: Name
    """Its name."""
    coordinator: Hex64
    """Ed25519 key of the coordinator that it means: no other can be shown this request."""
    time: Moment
    """Of signing, by the site's clock."""
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Random: the same request is heard once."""
    node_signature: _EcSignature
    """By the node key: ECDSA, SHA-384, DER, hexadecimal."""


class EnrolRequest(SiteRequest):
    """A site shows its invite and its keys."""

    token: Token
    """Of the invite."""
    node_key: NodeKey
    """OpenSSH public line."""
    ledger_key: Hex64
    """Ed25519, raw."""
    fingerprint: Fingerprint
    """Of the above and of what the site trusts."""
    version: Version
    """medfed's, at the site."""
    ledger_signature: _EdSignature
    """By the ledger key."""


class Answer(_Wire):
    """What the coordinator answers to all three."""

    state: State
    """Where the site stands."""
    fingerprint: Fingerprint
    """What to compare by telephone."""
    bundle: Hex64
    """SHA-256 of the bundle that the coordinator's release of medfed submits."""
    coordinator: Hex64
    """The coordinator's Ed25519 key."""
    version: Version
    """medfed's, at the coordinator."""


def node_key_line(key: ec.EllipticCurvePublicKey) -> str:
    """Return a node key's OpenSSH public line, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def fingerprint_of(
    *, site: str, node_key: str, ledger_key: str, coordinator: str, ca: bytes
) -> str:
    """Return the 96 bits that people compare by telephone, six groups of four digits.

    Args:
        site: The site's name.
        node_key: Its OpenSSH public line.
        ledger_key: Its ledger's Ed25519 key, hexadecimal.
        coordinator: The coordinator's Ed25519 key, hexadecimal.
        ca: The authority that the site trusts, PEM.
    """
    table = {
        "site": site,
        "node_key": node_key,
        "ledger_key": ledger_key,
        "coordinator": coordinator,
        "ca": [c.fingerprint(hashes.SHA256()).hex() for c in x509.load_pem_x509_certificates(ca)],
    }
    digest = hashlib.sha256(b"medfed fingerprint 1\n" + canonical(table)).hexdigest()
    return "-".join(digest[start : start + 4] for start in range(0, 24, 4))


def same_fingerprint(first: str, second: str) -> bool:
    """Whether two fingerprints are the same, however their groups are set apart."""
    return _digits(first) == _digits(second)


def _digits(fingerprint: str) -> str:
    return "".join(c for c in fingerprint.lower() if not (c.isspace() or c in "-:"))


def make_enrol_request(
    *,
    site: str,
    token: str,
    coordinator: str,
    ca: bytes,
    version: str,
    node_key: ec.EllipticCurvePrivateKey,
    ledger_key: Ed25519PrivateKey,
) -> EnrolRequest:
    """Return the signed request with which a site enrols. `ca`, `coordinator`: the invite's."""
    node_line = node_key_line(node_key.public_key())
    ledger_hex = public_hex(ledger_key.public_key())
    draft = EnrolRequest(
        site=site,
        coordinator=coordinator,
        time=write_moment(datetime.now(UTC)),
        nonce=secrets.token_hex(16),
        node_signature="00" * 8,
        token=token,
        node_key=node_line,
        ledger_key=ledger_hex,
        fingerprint=fingerprint_of(
            site=site,
            node_key=node_line,
            ledger_key=ledger_hex,
            coordinator=coordinator,
            ca=ca,
        ),
        version=version,
        ledger_signature="0" * 128,
    )
    text = _signed_text("enroll", draft)
    signatures = {
        "node_signature": _sign(node_key, text),
        "ledger_signature": ledger_key.sign(text).hex(),
    }
    return draft.model_copy(update=signatures)


def make_site_request(
    action: Action, *, site: str, coordinator: str, node_key: ec.EllipticCurvePrivateKey
) -> SiteRequest:
    """Return the signed request with which an enrolled site asks for its state, or leaves."""
    draft = SiteRequest(
        site=site,
        coordinator=coordinator,
        time=write_moment(datetime.now(UTC)),
        nonce=secrets.token_hex(16),
        node_signature="00" * 8,
    )
    signature = _sign(node_key, _signed_text(action, draft))
    return draft.model_copy(update={"node_signature": signature})


def is_signed(action: Action, request: SiteRequest, node_key: str) -> bool:
    """Whether the owner of `node_key`, and of the ledger key if one is named, signed `request`."""
    text = _signed_text(action, request)
    try:
        key = load_ssh_public_key(node_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(bytes.fromhex(request.node_signature), text, ec.ECDSA(hashes.SHA384()))
        if isinstance(request, EnrolRequest):
            ledger_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.ledger_key))
            ledger_key.verify(bytes.fromhex(request.ledger_signature), text)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _sign(key: ec.EllipticCurvePrivateKey, text: bytes) -> str:
    return key.sign(text, ec.ECDSA(hashes.SHA384())).hex()


def _signed_text(action: Action, request: SiteRequest) -> bytes:
    table = request.model_dump(exclude={"node_signature", "ledger_signature"})
    return b"medfed enrolment 1 " + action.encode() + b"\n" + canonical(table)
