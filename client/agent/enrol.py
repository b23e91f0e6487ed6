"""How a site joins a federation, asks how it stands, and leaves.

    invite ──> keys made here ──> signed request ──> coordinator: "enrolled"
                                                     fingerprints compared by telephone: "approved"

`keys/enrolment.json` says what is known of it. It is written before the invite is used, so that a
run that was cut off is taken up with the same keys; the invite's token is never written.
"""

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from medfed.client.agent.asking import DeclinedError, ask
from medfed.client.agent.keys import (
    check_pinned,
    load_node_key,
    load_or_make_ledger_key,
    load_or_make_node_key,
    node_key_file,
    pin_coordinator,
    set_node_key_aside,
)
from medfed.client.agent.site_file import add_address
from medfed.client.audit_log import AuditLog
from medfed.client.site import SiteConfig, load_site
from medfed.common.enrolment import (
    ENROLL,
    LEAVE,
    STATE,
    Action,
    Answer,
    make_enrol_request,
    make_site_request,
    write_moment,
)
from medfed.common.errors import FederationError, RunError
from medfed.common.files import read_json, write_atomically, write_json
from medfed.common.invite import Invite

ENROLMENT_FILE = "enrolment.json"
_ASKED = "asked"


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What a site knows of its membership. Nothing in it is secret.

    Attributes:
        site: Its name.
        federation: The federation's name.
        address: host:port of the coordinator.
        coordinator: The coordinator's Ed25519 key, hexadecimal.
        state: As the coordinator said last; "asked" before it said anything.
        fingerprint: What to compare by telephone.
        bundle: SHA-256 of the bundle that the coordinator's release submits; "" while asked.
        coordinator_version: medfed's, at the coordinator; "" while asked.
        invite_sha256: Of the token of the invite that was used.
        checked: When the coordinator said so; UTC.
    """

    site: str
    federation: str
    address: str
    coordinator: str
    state: str
    fingerprint: str
    bundle: str
    coordinator_version: str
    invite_sha256: str
    checked: str

    def after(self, answer: Answer) -> "Enrolment":
        """Return what is known after the coordinator's answer.

        Raises:
            FederationError: It is about other keys, or by another coordinator.
        """
        if answer.coordinator != self.coordinator or answer.fingerprint != self.fingerprint:
            raise FederationError(
                f"Expected the coordinator {self.coordinator[:16]}... and the fingerprint "
                f"{self.fingerprint}, got {answer.coordinator[:16]}... and {answer.fingerprint}. "
                "Do not go on: telephone the coordinator."
            )
        return replace(
            self,
            state=answer.state,
            bundle=answer.bundle,
            coordinator_version=answer.version,
            checked=write_moment(datetime.now(UTC)),
        )


def enroll(site_file: Path, invite: Invite | None) -> Enrolment:
    """Join the federation of `invite`; a site that joined already only asks how it stands.

    Args:
        site_file: The site's site.toml.
        invite: None: only ask.

    Raises:
        SiteConfigError: site.toml cannot be read.
        LedgerError: The ledger is bound to another coordinator, or cannot be trusted.
        FederationError: Anything else, with the way out.
    """
    site = load_site(site_file)
    known = read_enrolment(site)
    if invite is None:
        return ask_state(site)
    if invite.site != site.name:
        raise FederationError(
            f"Expected an invite for {site.name}, the name in {site_file}, got one for "
            f'{invite.site}. Ask for another invite, or set name = "{invite.site}" there.'
        )
    check_pinned(site.state_folder, invite.coordinator)
    if known is not None and known.state != _ASKED:
        if known.invite_sha256 == _hash_of(invite.token) or _is_member(site):
            return ask_state(site)
        set_node_key_aside(node_key_file(site))
    _check_expiry(invite)
    return _join(site, site_file, invite)


def ask_state(site: SiteConfig) -> Enrolment:
    """Ask the coordinator how this site stands, and note the answer.

    Raises:
        FederationError: The site has not enrolled, or the coordinator does not answer.
    """
    return _signed(site, "state", STATE)


def tell_leaving(site: SiteConfig) -> Enrolment:
    """Tell the coordinator that this site leaves. Nothing at the site is removed.

    Raises:
        FederationError: The site has not enrolled, or the coordinator does not answer.
    """
    return _signed(site, "leave", LEAVE)


def read_enrolment(site: SiteConfig) -> Enrolment | None:
    """Return what is known of this site's membership; None before the first invite.

    Raises:
        FederationError: The file is damaged.
    """
    path = _file(site)
    if not path.exists():
        return None
    try:
        table = read_json(path)
        if set(table) != {field.name for field in fields(Enrolment)}:
            raise RunError(f"{path} is damaged: expected the fields of an enrolment.")
        if not all(isinstance(value, str) for value in table.values()):
            raise RunError(f"{path} is damaged: expected text in every field.")
    except (RunError, OSError, RecursionError) as error:
        raise FederationError(
            f"{error} Restore it from a backup; or move it aside and run `medfed site enroll` "
            "with the invite again."
        ) from None
    return Enrolment(**table)


def _join(site: SiteConfig, site_file: Path, invite: Invite) -> Enrolment:
    node_key = load_or_make_node_key(node_key_file(site))
    request = make_enrol_request(
        site=site.name,
        token=invite.token,
        coordinator=invite.coordinator,
        ca=invite.ca.encode(),
        version=version("medfed"),
        node_key=node_key,
        ledger_key=load_or_make_ledger_key(site.state_folder),
    )
    # The hospital's word on the address goes first: it may reach the coordinator by another way.
    asked = Enrolment(
        site=site.name,
        federation=invite.federation,
        address=site.connection.address or invite.address,
        coordinator=invite.coordinator,
        state=_ASKED,
        fingerprint=request.fingerprint,
        bundle="",
        coordinator_version="",
        invite_sha256=_hash_of(invite.token),
        checked="",
    )
    write_json(_file(site), asdict(asked))
    answer = ask(asked.address, invite.ca.encode(), ENROLL, request)
    joined = asked.after(answer)
    ca = site.path(site.connection.ca)
    ca.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(ca, invite.ca.encode())
    pin_coordinator(site.state_folder, invite.coordinator)
    add_address(site_file, joined.address)
    AuditLog(site.state_folder).write(
        "enrolled",
        address=joined.address,
        fingerprint=joined.fingerprint,
        sha256=joined.bundle,
    )
    write_json(_file(site), asdict(joined))
    return joined


def _signed(site: SiteConfig, action: Action, path: str) -> Enrolment:
    known = read_enrolment(site)
    if known is None or known.state == _ASKED:
        raise FederationError(
            f"{site.name} has not enrolled yet. Use the coordinator's invite: "
            "medfed site enroll INVITE"
        )
    request = make_site_request(
        action,
        site=known.site,
        coordinator=known.coordinator,
        node_key=load_node_key(node_key_file(site)),
    )
    ca = site.path(site.connection.ca)
    try:
        trusted = ca.read_bytes()
    except OSError as error:
        raise FederationError(
            f"{ca} cannot be read ({error.strerror}). Restore it, or enrol with a new invite."
        ) from None
    answer = ask(site.connection.address or known.address, trusted, path, request)
    told = known.after(answer)
    write_json(_file(site), asdict(told))
    return told


def _is_member(site: SiteConfig) -> bool:
    """Whether the coordinator still counts on the key that this site has."""
    if not node_key_file(site).exists():
        return False
    try:
        return ask_state(site).state in ("enrolled", "approved")
    except DeclinedError as declined:
        if declined.code == "refused":
            return False
        raise


def _check_expiry(invite: Invite) -> None:
    if invite.has_expired:
        raise FederationError(
            f"The invite expired at {invite.expires[:16].replace('T', ' ')} UTC, by this "
            f"machine's clock it is {datetime.now(UTC):%Y-%m-%d %H:%M}. Ask the coordinator for a "
            "new one, or set the clock."
        )


def _hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _file(site: SiteConfig) -> Path:
    return node_key_file(site).parent / ENROLMENT_FILE
