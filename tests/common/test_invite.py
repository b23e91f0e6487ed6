import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from medfed.common.enrolment import write_moment
from medfed.common.errors import FederationError
from medfed.common.invite import PREFIX, Invite
from medfed.server.federation.pki import own_certificate

CA = own_certificate("demo", ["localhost"]).ca.decode()
TABLE: dict[str, Any] = {
    "v": 1,
    "federation": "demo",
    "address": "fed.example.org:8443",
    "site": "north",
    "token": "A" * 43,
    "ca": CA,
    "coordinator": "c" * 64,
    "expires": "2030-01-01T00:00:00.000000+00:00",
}


def text_of(content: object) -> str:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return PREFIX + base64.urlsafe_b64encode(encoded).decode().rstrip("=")


def test_invite_is_one_line_that_reads_back() -> None:
    invite = Invite.model_validate(TABLE)
    text = invite.to_text()
    assert text.startswith("medfed-invite-1.")
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert Invite.from_text(text) == invite
    assert Invite.from_text(text_of(TABLE)) == invite


def test_invite_survives_a_mail_program() -> None:
    text = Invite.model_validate(TABLE).to_text()
    wrapped = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert Invite.from_text(f"  {wrapped}\n\n") == Invite.model_validate(TABLE)


def test_invite_expires() -> None:
    def ending(delta: timedelta) -> Invite:
        return Invite.model_validate({**TABLE, "expires": write_moment(datetime.now(UTC) + delta)})

    assert not ending(timedelta(minutes=1)).has_expired
    assert ending(timedelta(minutes=-1)).has_expired


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 700])
def test_incomplete_invite_is_refused_without_being_quoted(cut: int) -> None:
    text = Invite.model_validate(TABLE).to_text()
    with pytest.raises(FederationError, match="damaged or incomplete") as caught:
        Invite.from_text(text[:-cut])
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "hello", "/tmp/invite", "medfed"])
def test_text_that_is_no_invite_is_refused(text: str) -> None:
    with pytest.raises(FederationError, match=r"begins with medfed-invite-1\."):
        Invite.from_text(text)


def test_invite_of_a_later_release_says_so() -> None:
    with pytest.raises(FederationError, match="release"):
        Invite.from_text("medfed-invite-2.AAAA")


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"site": "../north"},
        {"site": "n\u00f6rth"},
        {"site": 7},
        {"federation": "a/b"},
        {"address": "fed.example.org"},
        {"address": "https://fed.example.org:8443"},
        {"address": "FED.example.org:8443"},
        {"token": "A" * 42},
        {"token": "A" * 42 + "="},
        {"coordinator": "C" * 64},
        {"ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"ca": ""},
        {"expires": "tomorrow"},
        {"expires": "2030-01-01T00:00:00+00:00"},
        {"expires": "2030-01-01T00:00:00.000000"},
        {"expires": "0001-01-01T00:00:00.000000+23:59"},
        {"expires": 1893456000},
        {"more": 1},
    ],
)
def test_invite_with_an_impossible_value_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match="damaged"):
        Invite.from_text(text_of({**TABLE, **change}))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 40_000, b'{"v": 1' + b" " * 60_000 + b"}"],
)
def test_content_that_is_no_table_is_refused(content: bytes) -> None:
    with pytest.raises(FederationError, match="damaged"):
        Invite.from_text(text_of(content))
