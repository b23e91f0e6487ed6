"""The enrolment desk: who gets in, who does not, and what an outsider learns: nothing.

Requests are made here by hand, from the form that common/enrolment.py describes.
"""

import base64
import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfed.common.enrolment import (
    fingerprint_of,
    same_fingerprint,
)
from medfed.common.errors import FederationError
from medfed.common.invite import Invite
from medfed.server.federation.enrolment import EnrolmentDesk
from medfed.server.federation.home import FederationConfig, FederationHome, init_home
from medfed.server.federation.membership import approve_site, invite_site, revoke_site
from medfed.server.federation.pki import own_certificate
from medfed.server.federation.registry import Registry

Table = dict[str, Any]
ENROLL, STATE, LEAVE = "/medfed/v1/enroll", "/medfed/v1/state", "/medfed/v1/leave"
OUTSIDER = {"error", "message", "time"}


@dataclass
class Federation:
    home: FederationHome
    desk: EnrolmentDesk

    @property
    def registry(self) -> Registry:
        return Registry(self.home.sites_folder)

    def post(self, path: str, table: Table) -> tuple[int, Table]:
        return self.desk.handle(path, json.dumps(table).encode())

    def invite(self, site: str = "north", days: float = 14) -> Invite:
        return invite_site(self.home, site, days)


@dataclass
class Keys:
    node: ec.EllipticCurvePrivateKey
    ledger: ed25519.Ed25519PrivateKey

    @property
    def node_line(self) -> str:
        return openssh(self.node.public_key())

    @property
    def ledger_hex(self) -> str:
        return self.ledger.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def openssh(key: PublicKeyTypes) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def new_keys() -> Keys:
    return Keys(ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate())


def now(off: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + off).isoformat(timespec="microseconds")


def signed(action: str, table: Table, keys: Keys, *, by_ledger: bool = False) -> Table:
    text = f"medfed enrolment 1 {action}\n{json.dumps(table, sort_keys=True)}".encode()
    node = keys.node.sign(text, ec.ECDSA(hashes.SHA384())).hex()
    ledger = {"ledger_signature": keys.ledger.sign(text).hex()} if by_ledger else {}
    return {**table, "node_signature": node, **ledger}


def enrol_request(invite: Invite, keys: Keys, **changed: object) -> Table:
    table: Table = {
        "site": invite.site,
        "coordinator": invite.coordinator,
        "time": now(),
        "nonce": secrets.token_hex(16),
        "token": invite.token,
        "node_key": keys.node_line,
        "ledger_key": keys.ledger_hex,
        "version": "0.1.0",
    }
    table["fingerprint"] = fingerprint_of(
        site=invite.site,
        node_key=keys.node_line,
        ledger_key=keys.ledger_hex,
        coordinator=invite.coordinator,
        ca=invite.ca.encode(),
    )
    return signed("enroll", {**table, **changed}, keys, by_ledger=True)


def site_request(action: str, invite: Invite, keys: Keys, **changed: object) -> Table:
    table = {
        "site": invite.site,
        "coordinator": invite.coordinator,
        "time": now(),
        "nonce": secrets.token_hex(16),
    }
    return signed(action, {**table, **changed}, keys)


@pytest.fixture(scope="module")
def certificate() -> Any:
    return own_certificate("demo", ["localhost"])


@pytest.fixture
def federation(tmp_path: Path, certificate: Any) -> Federation:
    config = FederationConfig(name="demo", address="localhost")
    home = init_home(tmp_path / "federation", config, certificate)
    return Federation(home, EnrolmentDesk(home))


def enrolled(federation: Federation, site: str = "north") -> tuple[Invite, Keys]:
    invite, keys = federation.invite(site), new_keys()
    status, answer = federation.post(ENROLL, enrol_request(invite, keys))
    assert (status, answer.get("state")) == (200, "enrolled")
    return invite, keys


def approved(federation: Federation, site: str = "north") -> tuple[Invite, Keys]:
    invite, keys = enrolled(federation, site)
    approve_site(federation.registry, site, federation.registry.get(site).fingerprint)
    return invite, keys


def without_time(answer: tuple[int, Table]) -> tuple[int, Table]:
    return answer[0], {key: value for key, value in answer[1].items() if key != "time"}


def code(answer: tuple[int, Table]) -> str:
    status, table = answer
    assert 400 <= status < 500, table
    assert set(table) == OUTSIDER
    return str(table["error"])


# Joining


def test_site_with_an_invite_is_enrolled_and_waits(federation: Federation) -> None:
    invite, keys = federation.invite(), new_keys()
    request = enrol_request(invite, keys)
    status, answer = federation.post(ENROLL, request)
    assert status == 200
    assert set(answer) == {"state", "fingerprint", "bundle", "coordinator", "version"}
    assert answer["state"] == "enrolled"
    assert answer["fingerprint"] == request["fingerprint"]
    assert answer["coordinator"] == federation.home.coordinator_key().public_key
    assert len(answer["bundle"]) == 64
    record = federation.registry.get("north")
    assert (record.state, record.node_key, record.ledger_key, record.version) == (
        "enrolled", keys.node_line, keys.ledger_hex, "0.1.0",
    )  # fmt: skip


def test_neither_token_nor_private_key_is_kept_or_answered(federation: Federation) -> None:
    invite, keys = federation.invite(), new_keys()
    answer = json.dumps(federation.post(ENROLL, enrol_request(invite, keys)))
    kept = [path.read_bytes() for path in federation.home.folder.rglob("*") if path.is_file()]
    private = [
        invite.token.encode(),
        *_spellings(keys.node.private_numbers().private_value.to_bytes(48, "big")),
        *_spellings(keys.ledger.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())),
    ]
    for secret in private:
        assert not any(secret in content for content in kept)
        assert secret not in answer.encode()


def _spellings(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), base64.b64encode(secret)[:40]]


def test_site_that_missed_the_answer_gets_it_again(federation: Federation) -> None:
    invite, keys = enrolled(federation)
    before = federation.registry.get("north")
    status, answer = federation.post(ENROLL, enrol_request(invite, keys))
    assert (status, answer["state"]) == (200, "enrolled")
    assert replace(federation.registry.get("north"), nonces=before.nonces) == before


def test_stolen_invite_used_second_is_refused_and_noted(federation: Federation) -> None:
    invite, keys = enrolled(federation)
    assert code(federation.post(ENROLL, enrol_request(invite, new_keys()))) == "used"
    record = federation.registry.get("north")
    assert "used again" in record.note
    assert record.node_key == keys.node_line
    assert record.state == "enrolled"


def test_thief_cannot_use_up_the_requests_of_a_site(federation: Federation) -> None:
    invite, keys = enrolled(federation)
    for _ in range(140):
        federation.post(ENROLL, enrol_request(invite, new_keys()))
    assert federation.post(STATE, site_request("state", invite, keys))[0] == 200


def test_of_two_uses_at_the_same_time_one_wins(federation: Federation) -> None:
    invite = federation.invite()
    rivals = [new_keys() for _ in range(8)]
    desks = [EnrolmentDesk(federation.home) for _ in rivals]

    def use(number: int) -> int:
        body = json.dumps(enrol_request(invite, rivals[number])).encode()
        return desks[number].handle(ENROLL, body)[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(use, range(8)))
    assert sorted(answers) == [200] + [409] * 7
    winner = rivals[answers.index(200)]
    assert federation.registry.get("north").node_key == winner.node_line


def test_wrong_token_and_unknown_site_get_the_same_answer(federation: Federation) -> None:
    invite, keys = federation.invite(), new_keys()
    wrong = enrol_request(invite.model_copy(update={"token": secrets.token_urlsafe(32)}), keys)
    unknown = enrol_request(invite.model_copy(update={"site": "south"}), keys)
    first, second = federation.post(ENROLL, wrong), federation.post(ENROLL, unknown)
    assert code(first) == "refused"
    assert without_time(first) == without_time(second)
    assert federation.registry.get("north").state == "invited"
    assert federation.registry.find("south") is None


@pytest.mark.parametrize("end", ["revoke", "leave"])
def test_invite_of_a_site_that_is_out_is_refused(federation: Federation, end: str) -> None:
    invite, keys = approved(federation)
    if end == "revoke":
        revoke_site(federation.registry, "north")
    else:
        federation.post(LEAVE, site_request("leave", invite, keys))
    for these in (keys, new_keys()):
        assert code(federation.post(ENROLL, enrol_request(invite, these))) == "refused"


def test_cancelled_invite_is_refused(federation: Federation) -> None:
    invite = federation.invite()
    revoke_site(federation.registry, "north")
    assert code(federation.post(ENROLL, enrol_request(invite, new_keys()))) == "refused"


def test_expired_invite_is_refused(federation: Federation) -> None:
    invite = federation.invite(days=-1e-6)
    assert code(federation.post(ENROLL, enrol_request(invite, new_keys()))) == "expired"
    assert federation.registry.get("north").state == "invited"


def test_second_invite_replaces_the_first(federation: Federation) -> None:
    first, second = federation.invite(), federation.invite()
    assert code(federation.post(ENROLL, enrol_request(first, new_keys()))) == "refused"
    assert federation.post(ENROLL, enrol_request(second, new_keys()))[0] == 200


def test_key_of_another_site_is_refused(federation: Federation) -> None:
    _, keys = enrolled(federation)
    south = federation.invite("south")
    assert code(federation.post(ENROLL, enrol_request(south, keys))) == "key"


def test_key_of_an_earlier_membership_is_refused(federation: Federation) -> None:
    keys = [new_keys() for _ in range(3)]
    for these in keys:
        invite = federation.invite()
        assert federation.post(ENROLL, enrol_request(invite, these))[0] == 200
        revoke_site(federation.registry, "north")
    federation.invite()  # was not used
    invite, south = federation.invite(), federation.invite("south")
    for these in keys:
        assert code(federation.post(ENROLL, enrol_request(invite, these))) == "key"
        assert code(federation.post(ENROLL, enrol_request(south, these))) == "key"
    assert federation.post(ENROLL, enrol_request(invite, new_keys()))[0] == 200


def test_site_that_was_told_to_trust_another_is_refused(federation: Federation) -> None:
    invite = federation.invite()
    other_ca = own_certificate("demo", ["localhost"]).ca.decode()
    for change in ({"ca": other_ca}, {"coordinator": "0" * 64}):
        changed = invite.model_copy(update=change)
        assert code(federation.post(ENROLL, enrol_request(changed, new_keys()))) == "changed"
    assert federation.registry.get("north").state == "invited"


# Signatures, clocks, repetition


@pytest.mark.parametrize(
    "field",
    ["site", "coordinator", "time", "nonce", "token", "node_key", "ledger_key", "version",
     "fingerprint"],
)  # fmt: skip
def test_field_changed_after_signing_is_refused(federation: Federation, field: str) -> None:
    invite = federation.invite()
    request, other = (enrol_request(invite, new_keys(), version=v) for v in ("0.1.0", "0.1.1"))
    other |= {"site": "south", "coordinator": "0" * 64, "token": secrets.token_urlsafe(32)}
    assert request[field] != other[field]
    answer = federation.post(ENROLL, {**request, field: other[field]})
    assert code(answer) == "signature"
    assert federation.registry.get("north").state == "invited"


@pytest.mark.parametrize("missing", ["node", "ledger"])
def test_enrolment_needs_both_signatures(federation: Federation, missing: str) -> None:
    invite, keys = federation.invite(), new_keys()
    request = enrol_request(invite, keys)
    stranger = enrol_request(invite, new_keys())
    request[f"{missing}_signature"] = stranger[f"{missing}_signature"]
    assert code(federation.post(ENROLL, request)) == "signature"


def test_stranger_learns_nothing_about_a_site(federation: Federation) -> None:
    invite, _ = approved(federation)
    for action, path in (("state", STATE), ("leave", LEAVE)):
        known = federation.post(path, site_request(action, invite, new_keys()))
        unknown = federation.post(path, site_request(action, invite, new_keys(), site="south"))
        assert code(known) == "refused"
        assert without_time(known) == without_time(unknown)
    assert federation.registry.get("north").state == "approved"


def test_request_for_one_thing_is_not_taken_for_another(federation: Federation) -> None:
    invite, keys = approved(federation)
    request = site_request("state", invite, keys)
    assert code(federation.post(LEAVE, request)) == "refused"
    assert federation.registry.get("north").state == "approved"


def test_request_to_another_coordinator_is_refused(federation: Federation) -> None:
    invite, keys = approved(federation)
    request = site_request("leave", invite, keys, coordinator="0" * 64)
    assert code(federation.post(LEAVE, request)) == "changed"


@pytest.mark.parametrize(("minutes", "is_off"), [(-6, True), (-4, False), (4, False), (6, True)])
def test_clock_that_is_off_is_refused(federation: Federation, minutes: int, is_off: bool) -> None:
    invite, keys = federation.invite(), new_keys()
    time = now(timedelta(minutes=minutes))
    enrol = federation.post(ENROLL, enrol_request(invite, keys, time=time))
    if is_off:
        assert code(enrol) == "clock"
        apart = datetime.fromisoformat(enrol[1]["time"]) - datetime.now(UTC)
        assert abs(apart) < timedelta(minutes=1)
        federation.post(ENROLL, enrol_request(invite, keys))
        assert code(federation.post(STATE, site_request("state", invite, keys, time=time))) == (
            "clock"
        )
    else:
        assert enrol[0] == 200


@pytest.mark.parametrize("restarted", [False, True])
def test_request_is_heard_once(federation: Federation, restarted: bool) -> None:
    invite, keys = approved(federation)
    request = site_request("state", invite, keys)
    assert federation.post(STATE, request)[0] == 200
    if restarted:
        federation.desk = EnrolmentDesk(federation.home)
    assert code(federation.post(STATE, request)) == "repeated"


def test_old_request_to_leave_does_not_end_a_later_membership(federation: Federation) -> None:
    invite, keys = approved(federation)
    old = site_request("leave", invite, keys)
    assert federation.post(LEAVE, old)[1]["state"] == "left"
    approved(federation)
    assert code(federation.post(LEAVE, old)) == "refused"
    assert federation.registry.get("north").state == "approved"


def test_nonces_are_forgotten_once_their_time_is_refused_anyway(federation: Federation) -> None:
    invite, keys = approved(federation)
    record = federation.registry.get("north")
    old = tuple((secrets.token_hex(16), now(timedelta(minutes=-6))) for _ in range(500))
    federation.registry.put(replace(record, nonces=old))
    assert federation.post(STATE, site_request("state", invite, keys))[0] == 200
    assert len(federation.registry.get("north").nonces) == 1


def test_site_that_asks_without_end_is_told_to_wait(federation: Federation) -> None:
    invite, keys = approved(federation)
    answers = [federation.post(STATE, site_request("state", invite, keys)) for _ in range(140)]
    assert [status for status, _ in answers[:100]] == [200] * 100
    assert code(answers[-1]) == "busy"
    assert len(federation.registry.get("north").nonces) < 140


# Being a member


def test_state_is_what_the_registry_says(federation: Federation) -> None:
    invite, keys = enrolled(federation)

    def state() -> str:
        status, answer = federation.post(STATE, site_request("state", invite, keys))
        assert status == 200
        return str(answer["state"])

    assert state() == "enrolled"
    approve_site(federation.registry, "north", federation.registry.get("north").fingerprint)
    assert state() == "approved"
    revoke_site(federation.registry, "north")
    assert state() == "revoked"
    federation.invite()
    assert code(federation.post(STATE, site_request("state", invite, keys))) == "refused"


def test_site_leaves_once_and_for_all(federation: Federation) -> None:
    invite, keys = approved(federation)
    for _ in range(2):
        status, answer = federation.post(LEAVE, site_request("leave", invite, keys))
        assert (status, answer["state"]) == (200, "left")
    with pytest.raises(FederationError, match="north left"):
        approve_site(federation.registry, "north", federation.registry.get("north").fingerprint)


def test_revoked_site_cannot_make_itself_one_that_left(federation: Federation) -> None:
    invite, keys = approved(federation)
    revoke_site(federation.registry, "north")
    assert federation.post(LEAVE, site_request("leave", invite, keys))[1]["state"] == "revoked"


def test_approval_needs_the_right_fingerprint(federation: Federation) -> None:
    federation.invite("south")
    enrolled(federation)
    registry = federation.registry
    right = registry.get("north").fingerprint
    for wrong in ("", "0000", right[:-1], right + "0", right.replace(right[0], "x"), "\u0661"):
        with pytest.raises(FederationError, match="north was not approved"):
            approve_site(registry, "north", wrong)
    assert registry.get("north").state == "enrolled"
    as_heard = f" {right.upper().replace('-', ' ')} "
    assert same_fingerprint(right, as_heard)
    approve_site(registry, "north", as_heard)
    assert registry.get("north").state == "approved"
    for site, message in (("south", "not used its invite"), ("east", "No site east")):
        with pytest.raises(FederationError, match=message):
            approve_site(registry, site, right)


@pytest.mark.parametrize("change", ["site", "node_key", "ledger_key", "coordinator", "ca"])
def test_fingerprint_covers_both_sides(change: str) -> None:
    keys, others = new_keys(), new_keys()
    cas = [own_certificate("demo", ["localhost"]).ca for _ in range(2)]
    right = {
        "site": "north", "node_key": keys.node_line, "ledger_key": keys.ledger_hex,
        "coordinator": "a" * 64, "ca": cas[0],
    }  # fmt: skip
    wrong = {
        "site": "south", "node_key": others.node_line, "ledger_key": others.ledger_hex,
        "coordinator": "b" * 64, "ca": cas[1],
    }  # fmt: skip
    make: Callable[..., str] = fingerprint_of
    assert make(**right) != make(**{**right, change: wrong[change]})
    assert make(**right) == make(**{**right, "ca": b"# a comment\n" + cas[0]})


def test_member_is_not_invited_again(federation: Federation) -> None:
    enrolled(federation)
    with pytest.raises(FederationError, match="revoke north"):
        federation.invite()
    approve_site(federation.registry, "north", federation.registry.get("north").fingerprint)
    with pytest.raises(FederationError, match="revoke north"):
        federation.invite()


@pytest.mark.parametrize("name", ["../x", "a/b", "", "n\u00f6rth", "north\n", "NORTH", "a" * 65])
def test_impossible_names_are_not_invited(federation: Federation, name: str) -> None:
    federation.invite()
    before = sorted(federation.home.folder.rglob("*"))
    with pytest.raises(FederationError, match=r"Expected a name|already"):
        federation.invite(name)
    assert sorted(federation.home.folder.rglob("*")) == before


def test_only_invited_sites_can_be_revoked(federation: Federation) -> None:
    with pytest.raises(FederationError, match="No site north"):
        revoke_site(federation.registry, "north")
    assert federation.registry.records() == []


# Malformed requests

HUGE = "a" * 40_000
BAD_NAMES = [
    "../north", "north/..", "a/b", "a\\b", "n\u00f6rth", "\uff4eorth", "north\n", " north",
    "north\x00",
    "", ".", "..", ".north", HUGE, "nor\u200bth", "n\u0307orth", "\U0001d427orth", "north;ls",
]  # fmt: skip
BAD_VALUES: list[tuple[str, object]] = [
    *(("site", name) for name in BAD_NAMES),
    *(("site", value) for value in (1, None, True, ["north"], {"a": 1}, 1e309)),
    ("coordinator", "A" * 64), ("coordinator", "a" * 63), ("coordinator", HUGE),
    ("nonce", "A" * 32), ("nonce", ""), ("nonce", "0" * 33), ("nonce", 0), ("nonce", "\u0660" * 32),
    ("time", "now"), ("time", ""), ("time", 0), ("time", 1e18), ("time", "2026-01-01T00:00:00"),
    ("time", "2026-01-01T00:00:00.000000"), ("time", "2026-01-01T01:00:00.000000+01:00"),
    ("time", "0001-01-01T00:00:00.000000+23:59"), ("time", "9999-12-31T23:59:59.999999-23:59"),
    ("time", "\u0662026-01-01T00:00:00.000000+00:00"), ("time", HUGE),
    ("token", "A" * 42), ("token", "A" * 44), ("token", "A" * 42 + "="), ("token", 7),
    ("token", ""),
    ("node_key", ""), ("node_key", "ecdsa-sha2-nistp384 AAAA"), ("node_key", HUGE),
    ("node_key", "ssh-rsa AAAA"), ("node_key", "\udcff"), ("node_key", "ecdsa-sha2-nistp384"),
    ("ledger_key", "g" * 64), ("ledger_key", ""), ("ledger_key", HUGE),
    ("version", "0.1.0\x1b[2J"), ("version", ""), ("version", HUGE), ("version", "0.1 <b>"),
    ("fingerprint", "0" * 24), ("fingerprint", ""), ("fingerprint", HUGE),
    ("node_signature", "zz" * 50), ("node_signature", ""), ("node_signature", "0" * 400),
    ("ledger_signature", "0" * 127), ("ledger_signature", ["0" * 128]),
    ("admin", True), ("state", "approved"), ("__proto__", {}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_VALUES, ids=lambda v: ascii(v)[:24])
def test_malformed_value_is_refused(federation: Federation, field: str, value: object) -> None:
    invite, keys = federation.invite(), new_keys()
    request = {**enrol_request(invite, keys), field: value}
    _check_malformed(federation, ENROLL, json.dumps(request).encode(), value)
    known = {**site_request("state", invite, keys), field: value}
    if field not in ("token", "node_key", "ledger_key", "version", "fingerprint"):
        _check_malformed(federation, STATE, json.dumps(known).encode(), value)


def _check_malformed(federation: Federation, path: str, body: bytes, value: object) -> None:
    before = federation.registry.records()
    answer = federation.desk.handle(path, body)
    assert code(answer) == "malformed"
    if isinstance(value, str) and len(value) > 20:
        assert value[:20] not in json.dumps(answer[1])
    assert federation.registry.records() == before


FIELDS = [
    "site", "coordinator", "time", "nonce", "token", "node_key", "ledger_key", "version",
    "fingerprint", "node_signature", "ledger_signature",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field_is_refused(federation: Federation, field: str) -> None:
    request = enrol_request(federation.invite(), new_keys())
    del request[field]
    assert code(federation.post(ENROLL, request)) == "malformed"


def test_node_keys_of_other_kinds_are_refused(federation: Federation) -> None:
    invite, keys = federation.invite(), new_keys()
    for line in (
        openssh(ec.generate_private_key(ec.SECP256R1()).public_key()),
        openssh(ec.generate_private_key(ec.SECP521R1()).public_key()),
        openssh(ed25519.Ed25519PrivateKey.generate().public_key()),
        openssh(rsa.generate_private_key(65537, 2048).public_key()),
        keys.node_line + " dr.house@north",
        keys.node_line + "\n",
        " " + keys.node_line,
        keys.node_line.replace("nistp384 ", "nistp384  "),
    ):
        request = enrol_request(invite, keys, node_key=line)
        assert code(federation.post(ENROLL, request)) == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"1", b'"north"', b"{", b"{}", b"\xff\xfe\x00", b"\x00" * 100,
        b"[" * 60_000, b'{"a":' * 10_000, b'{"site": NaN}', b"9" * 50_000, b"{} {}",
        b'{"site": "\\ud800"}', b"\x80\x04\x95\x00.", b"<xml/>", b"site=north&token=1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [ENROLL, STATE, LEAVE])
def test_body_that_is_no_request_is_refused(federation: Federation, path: str, body: bytes) -> None:
    assert code(federation.desk.handle(path, body)) == "malformed"


def test_large_body_is_refused(federation: Federation) -> None:
    request = enrol_request(federation.invite(), new_keys())
    body = json.dumps(request).encode() + b" " * 65536
    status, answer = federation.desk.handle(ENROLL, body)
    assert (status, answer["error"]) == (413, "size")


@pytest.mark.parametrize(
    "path",
    ["", "/", "/medfed/v1/approve", "/medfed/v1/enroll/", "/medfed/v1/../v1/enroll", "enroll"],
)
def test_other_paths_are_not_there(federation: Federation, path: str) -> None:
    request = enrol_request(federation.invite(), new_keys())
    status, answer = federation.post(path, request)
    assert (status, answer["error"]) == (404, "path")


def _dumped(value: object) -> bytes:
    return json.dumps(value).encode()


_KEYS = new_keys()
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_nothing_that_is_sent_raises_or_lets_anybody_in(
    federation: Federation, data: st.DataObject
) -> None:
    request = enrol_request(federation.invite("north"), _KEYS)
    field = data.draw(st.sampled_from(sorted(request)))
    garbage = json.dumps({**request, field: data.draw(_json)}).encode()
    body = data.draw(st.binary(max_size=200) | st.just(garbage) | _json.map(_dumped))
    status, answer = federation.desk.handle(
        data.draw(st.sampled_from([ENROLL, STATE, LEAVE])), body
    )
    assert 400 <= status < 500
    assert set(answer) == OUTSIDER
    assert federation.registry.get("north").state == "invited"


def test_damaged_record_is_told_to_the_log_and_not_to_the_outsider(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    invite, keys = approved(federation)
    path = federation.home.sites_folder / "north.json"
    path.write_text("{")
    status, answer = federation.post(STATE, site_request("state", invite, keys))
    assert (status, answer["error"]) == (503, "unavailable")
    assert str(path) in caplog.text
    assert str(federation.home.folder) not in json.dumps(answer)
