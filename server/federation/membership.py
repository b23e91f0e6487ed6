"""What the coordinator's people decide about sites: invite, approve, revoke.

A change is in the registry when the function returns, which the gate reads with every request.
"""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta

from medfed.common.enrolment import check_name, same_fingerprint, write_moment
from medfed.common.errors import FederationError
from medfed.common.invite import Invite
from medfed.server.federation.home import FederationHome
from medfed.server.federation.registry import Registry, SiteRecord


def invite_site(home: FederationHome, site: str, days: float) -> Invite:
    """Make an invite; only a hash of its token is kept. It replaces one that was not used yet.

    Args:
        home: The federation.
        site: Under which name the site joins.
        days: How long it can be used.

    Raises:
        FederationError: Not a site's name, or the site belongs to the federation already.
    """
    registry = Registry(home.sites_folder)
    token = secrets.token_urlsafe(32)
    expires = write_moment(datetime.now(UTC) + timedelta(days=days))
    made = Invite(
        federation=home.config.name,
        address=home.config.address,
        site=check_name(site),
        token=token,
        ca=home.ca.read_text("ascii"),
        coordinator=home.coordinator_key().public_key,
        expires=expires,
    )

    def edit(record: SiteRecord | None) -> SiteRecord:
        if record is None:
            _check_unlike(site, registry)
            record = SiteRecord(name=site, state="invited")
        elif record.state in ("enrolled", "approved"):
            raise FederationError(
                f"{site} is {record.state} already. `medfed federation revoke {site}` first, if "
                "it must join anew."
            )
        last = (record.node_key,) if record.node_key else ()
        fresh = SiteRecord(
            name=site,
            state="invited",
            token_sha256=hash_of(token),
            expires=expires,
            retired_keys=(*record.retired_keys, *last),
        )
        return fresh.to("invited")

    registry.change(site, edit)
    return made


def approve_site(registry: Registry, site: str, fingerprint: str) -> SiteRecord:
    """Let a site in that has enrolled with the keys of this fingerprint.

    Args:
        registry: Of the federation.
        site: Its name.
        fingerprint: As the site reads it; blanks and dashes do not matter.

    Raises:
        FederationError: It has not enrolled, or with other keys.
    """

    def edit(record: SiteRecord | None) -> SiteRecord:
        enrolled = check_enrolled(site, record)
        if not same_fingerprint(enrolled.fingerprint, fingerprint):
            raise FederationError(
                f"Expected the fingerprint {enrolled.fingerprint} of the keys that {site} sent, "
                f"got {fingerprint[:80]!r}. {site} was not approved. If it reads this one from its "
                "own screen, somebody else used its invite or changed it on the way: "
                f"`medfed federation revoke {site}`, then send a new invite another way."
            )
        return enrolled if enrolled.state == "approved" else enrolled.to("approved")

    changed = registry.change(site, edit)
    assert changed is not None
    return changed


def revoke_site(registry: Registry, site: str) -> SiteRecord:
    """Shut a site out, or cancel its invite.

    Raises:
        FederationError: It was never invited.
    """

    def edit(record: SiteRecord | None) -> SiteRecord:
        if record is None:
            return registry.get(site)  # raises
        return record if record.state == "revoked" else record.to("revoked")

    changed = registry.change(site, edit)
    assert changed is not None
    return changed


def check_enrolled(site: str, record: SiteRecord | None) -> SiteRecord:
    """Return the record of a site that has enrolled, or is approved.

    Raises:
        FederationError: It is neither, with the way out.
    """
    if record is None:
        raise FederationError(
            f"No site {site} was invited. `medfed federation sites` lists those that were."
        )
    if record.state == "invited":
        raise FederationError(
            f"{site} has not used its invite yet: there is nothing to approve. It does so with "
            "`medfed site enroll INVITE`."
        )
    if record.state in ("revoked", "left"):
        what = "was revoked" if record.state == "revoked" else "left"
        raise FederationError(
            f"{site} {what}. To let it in again: `medfed federation invite {site}`."
        )
    return record


def hash_of(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _check_unlike(site: str, registry: Registry) -> None:
    """Refuse a name that differs from another site's by its capitals alone."""
    for record in registry.records():
        if record.name.lower() == site.lower():
            raise FederationError(
                f"There is a site {record.name} already. Choose a name that differs by more than "
                "capital letters."
            )
