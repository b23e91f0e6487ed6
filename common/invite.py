"""The invite: one line that a coordinator hands to a site out of band.

    medfed-invite-1.<base64url of JSON, without padding>

It lets one site enrol once, and says whom this site may trust from then on: the authority behind
the coordinator's TLS certificate and the key that countersigns its ledger. Whoever holds it can
enrol in the site's place, which the comparison of fingerprints finds.
"""

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ValidationError

from medfed.common.addresses import join_address, split_address
from medfed.common.enrolment import Hex64, Moment, Token
from medfed.common.errors import FederationError
from medfed.common.study import Name, Section
from medfed.common.tls import read_certificates

PREFIX = "medfed-invite-1."
_MAX_CHARACTERS = 65536

_MEND = "Copy the whole line from the coordinator's message, or name the file that holds it."


def _address(address: str) -> str:
    try:
        if join_address(*split_address(address)) == address:
            return address
    except FederationError:
        pass
    raise ValueError("expected host:port")


def _certificates(pem: str) -> str:
    try:
        read_certificates(pem.encode())
    except FederationError:
        raise ValueError("expected certificates") from None
    return pem


class Invite(Section):
    """What an invite says."""

    v: Literal[1] = 1
    """Version of this form."""
    federation: Name
    """The federation's name."""
    address: Annotated[str, AfterValidator(_address)]
    """host:port of the coordinator."""
    site: Name
    """The name under which the site joins."""
    token: Token
    """Proves, once, that the sender got the invite."""
    ca: Annotated[str, AfterValidator(_certificates)]
    """Authority behind the coordinator's TLS certificate, PEM."""
    coordinator: Hex64
    """The coordinator's Ed25519 key."""
    expires: Moment
    """Until when it can be used."""

    def to_text(self) -> str:
        """Return the one line."""
        content = base64.urlsafe_b64encode(self.model_dump_json().encode())
        return PREFIX + content.decode("ascii").rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read an invite; blanks and line breaks that a mail program put in do not matter.

        Raises:
            FederationError: It is none, or damaged. The message holds nothing of it.
        """
        line = "".join(text.split())
        if not line.startswith("medfed-invite-"):
            raise FederationError(f"Expected an invite, which begins with {PREFIX}. {_MEND}")
        if not line.startswith(PREFIX):
            raise FederationError(
                f"Expected an invite of this version, {PREFIX}, got another. Install the medfed "
                "release that the coordinator names."
            )
        content = line.removeprefix(PREFIX)
        try:
            if len(content) > _MAX_CHARACTERS:
                raise ValueError("too long")
            padded = content + "=" * (-len(content) % 4)
            return cls.model_validate_json(
                base64.b64decode(padded, altchars=b"-_", validate=True), strict=True
            )
        except (ValidationError, ValueError, binascii.Error):
            raise FederationError(f"The invite is damaged or incomplete. {_MEND}") from None

    @property
    def has_expired(self) -> bool:
        """Whether it is too late to use it, by this machine's clock."""
        return datetime.now(UTC) > datetime.fromisoformat(self.expires)
