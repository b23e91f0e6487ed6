"""`medfed federation init|renew|invite|approve|revoke|sites`, as a person types them."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from medfed.cli import federation_sites
from medfed.common.enrolment import node_key_line
from medfed.common.errors import FederationError
from medfed.common.invite import Invite
from medfed.common.tls import normal_pem, read_certificates
from medfed.server.federation.certificates import check_files, hosts_of, private_pem
from medfed.server.federation.home import FederationHome, load_home
from medfed.server.federation.pki import issue, make_authority, own_certificate
from medfed.server.federation.registry import Registry

FINGERPRINT = "0123-4567-89ab-cdef-0123-4567"


class Command:
    """Runs `medfed federation ARGUMENTS` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = typer.Typer()
        federation_sites.add_to(self.app)

    @property
    def home(self) -> FederationHome:
        return load_home(self.folder / "federation")

    @property
    def registry(self) -> Registry:
        return Registry(self.home.sites_folder)

    def __call__(self, *arguments: object, answer: str = "") -> str:
        """Return what it printed; errors come through."""
        done = CliRunner().invoke(self.app, [str(a) for a in arguments], input=answer)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    def exit_code(self, *arguments: object, answer: str = "") -> int:
        return CliRunner().invoke(self.app, [str(a) for a in arguments], input=answer).exit_code

    def enrol(self, name: str) -> None:
        """Let a site be as if it had used its invite."""
        self("invite", name)
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        record = replace(
            self.registry.get(name), node_key=node_key_line(key), fingerprint=FINGERPRINT,
            version="0.1.0",
        )  # fmt: skip
        self.registry.put(record.to("enrolled"))


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDFED_FEDERATION", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return Command(tmp_path)


@pytest.fixture
def founded(federation: Command) -> Command:
    federation("init", "fed.example.org", "--name", "demo")
    return federation


def test_init_says_what_comes_next(federation: Command) -> None:
    said = federation("init", "fed.example.org:9443", "--name", "demo", "--san", "192.0.2.7")
    config = federation.home.config
    assert (config.name, config.address, config.port) == ("demo", "fed.example.org:9443", 9443)
    assert {"fed.example.org", "192.0.2.7", "localhost", "127.0.0.1"} == set(
        hosts_of(federation.home.certificate)
    )
    for part in ("demo", "fed.example.org:9443", "medfed federation start", "TCP port 9443",
                 "medfed federation invite SITE", "backup"):  # fmt: skip
        assert part in said
    assert "--home" not in said


@pytest.mark.parametrize(
    ("arguments", "name", "address", "port", "control_port"),
    [
        (["fed.example.org"], "fed.example.org", "fed.example.org:8443", 8443, 8444),
        (["192.0.2.7"], "federation", "192.0.2.7:8443", 8443, 8444),
        (["[::1]:443", "--port", "9000"], "federation", "[::1]:443", 9000, 8444),
        (["a.b:8444"], "a.b", "a.b:8444", 8444, 8445),
    ],
)
def test_init_chooses_sensible_defaults(
    federation: Command, arguments: list[str], name: str, address: str, port: int, control_port: int
) -> None:
    federation("init", *arguments)
    config = federation.home.config
    assert (config.name, config.address, config.port, config.control_port) == (
        name, address, port, control_port,
    )  # fmt: skip


def test_init_elsewhere_names_the_folder_in_what_comes_next(
    federation: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = federation("init", "a.example", "--home", "else/where")
    assert f"medfed federation start --home {federation.folder / 'else/where'}" in said
    assert "No site was invited" in federation("sites", "--home", "else/where")
    monkeypatch.setenv("MEDFED_FEDERATION", "by/variable")
    assert "--home" not in federation("init", "a.example")
    assert load_home(Path("by/variable")).config.name == "a.example"


def test_init_refuses_to_overwrite(founded: Command) -> None:
    key = founded.home.ca_key.read_bytes()
    with pytest.raises(FederationError, match="not overwritten"):
        founded("init", "fed.example.org")
    assert founded.home.ca_key.read_bytes() == key


@pytest.mark.parametrize(
    "options",
    [
        ["--ca", "x"], ["--ca-key", "x"], ["--certificate", "x"], ["--key", "x"],
        ["--certificate", "x", "--key", "x"], ["--ca", "x", "--certificate", "x"],
        ["--ca", "x", "--ca-key", "x", "--certificate", "x", "--key", "x"],
        ["--ca", "x", "--certificate", "x", "--key", "x", "--san", "y"],
    ],
)  # fmt: skip
def test_init_explains_options_that_do_not_belong_together(
    federation: Command, options: list[str]
) -> None:
    with pytest.raises(FederationError, match="--ca and --ca-key"):
        federation("init", "a.example", *options)
    assert list(federation.folder.iterdir()) == []


@pytest.mark.parametrize("address", ["https://a.example", "a b", "a:x", "../x"])
def test_init_refuses_what_is_no_address(federation: Command, address: str) -> None:
    with pytest.raises(FederationError, match="HOST:PORT"):
        federation("init", address)


def test_given_authority_signs_now_and_at_renewal(federation: Command) -> None:
    authority = make_authority("clinics")
    Path("ca.pem").write_bytes(normal_pem(list(authority.certificates)))
    Path("ca.key").write_bytes(private_pem(authority.key))
    said = federation(
        "init", "a.example", "--ca", "ca.pem", "--ca-key", "ca.key", "--san", "b.example"
    )
    assert "Authority    given" in said
    home = federation.home
    assert not home.ca_key.exists()
    kept = [p.read_bytes() for p in home.folder.rglob("*") if p.is_file()]
    assert not any(private_pem(authority.key) in content for content in kept)
    before = home.certificate.read_bytes()
    with pytest.raises(FederationError, match="Name it with --ca-key"):
        federation("renew")
    said = federation("renew", "--ca-key", "ca.key")
    assert home.certificate.read_bytes() != before
    assert "Restart" in said
    assert "b.example" in hosts_of(home.certificate)
    check_files(home.certificate, home.key, home.ca.read_bytes(), "a.example")


def test_given_certificate_is_used_and_replaced_by_another(federation: Command) -> None:
    authority = make_authority("clinics")
    for number in (1, 2):
        made = issue(authority, ["a.example"])
        Path(f"{number}.pem").write_bytes(made.chain)
        Path(f"{number}.key").write_bytes(made.key)
    Path("ca.pem").write_bytes(normal_pem(list(authority.certificates)))
    federation("init", "a.example", "--certificate", "1.pem", "--key", "1.key", "--ca", "ca.pem")
    home = federation.home
    assert home.certificate.read_bytes() == Path("1.pem").read_bytes()
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    with pytest.raises(FederationError, match="does not fit"):
        federation("renew", "--certificate", "2.pem", "--key", "1.key")
    assert home.certificate.read_bytes() == Path("1.pem").read_bytes()
    federation("renew", "--certificate", "2.pem", "--key", "2.key")
    assert home.certificate.read_bytes() == Path("2.pem").read_bytes()
    assert home.key.read_bytes() == Path("2.key").read_bytes()


def test_given_certificate_that_sites_would_refuse_is_refused(federation: Command) -> None:
    made = own_certificate("demo", ["other.example"])
    for name, content in (("c", made.chain), ("k", made.key), ("ca", made.ca)):
        Path(name).write_bytes(content)
    with pytest.raises(FederationError, match=r"not made out for a\.example"):
        federation("init", "a.example", "--certificate", "c", "--key", "k", "--ca", "ca")
    assert not Path("federation").exists()


def test_renewal_keeps_authority_names_and_address(founded: Command) -> None:
    home = founded.home
    ca, key = home.ca.read_bytes(), home.key.read_bytes()
    founded("renew", "--san", "second.example")
    # The federation moves.
    config = home.folder / "federation.toml"
    config.write_text(config.read_text().replace("fed.example.org", "new.example.org"))
    said = founded("renew")
    assert founded.home.ca.read_bytes() == ca
    assert founded.home.key.read_bytes() != key
    assert {"new.example.org", "second.example", "fed.example.org"} < set(
        hosts_of(founded.home.certificate)
    )
    check_files(home.certificate, home.key, ca, "new.example.org")
    assert "new.example.org" in said


def test_invite_is_printed_alone_so_that_it_can_be_piped(founded: Command) -> None:
    done = CliRunner().invoke(founded.app, ["invite", "north", "--days", "3"])
    [line] = done.stdout.splitlines()
    invite = Invite.from_text(line)
    assert invite.site == "north"
    assert invite.address == "fed.example.org:8443"
    assert invite.ca == founded.home.ca.read_text()
    assert invite.coordinator == founded.home.coordinator_key().public_key
    assert invite.expires == founded.registry.get("north").expires
    assert "medfed site enroll INVITE" in done.stderr
    assert read_certificates(invite.ca.encode())


def test_invite_file_is_for_its_owner_alone(founded: Command) -> None:
    said = founded("invite", "north", "--out", "invite.txt")
    assert stat.S_IMODE(Path("invite.txt").stat().st_mode) == 0o600
    invite = Invite.from_text(Path("invite.txt").read_text())
    assert invite.token not in said


@pytest.mark.parametrize("name", ["../north", "a/b", "", "n\u00f6rth", ".north"])
def test_invite_refuses_names_that_lead_elsewhere(founded: Command, name: str) -> None:
    before = sorted(founded.folder.rglob("*"))
    for command in ("invite", "approve", "revoke"):
        with pytest.raises(FederationError, match="Expected a name"):
            founded(command, name)
    assert sorted(founded.folder.rglob("*")) == before


def test_approve_shows_the_fingerprint_and_asks(founded: Command) -> None:
    founded.enrol("north")
    for answer in ("n\n", "\n"):
        assert founded.exit_code("approve", "north", answer=answer) == 1
        assert founded.registry.get("north").state == "enrolled"
    said = founded("approve", "north", answer="no\n")
    assert FINGERPRINT in said
    assert "Telephone north" in said
    assert "medfed federation revoke north" in said
    assert founded.exit_code("approve", "north") == 1, "nobody answered"
    said = founded("approve", "north", answer="y\n")
    assert "north is approved" in said
    assert founded.registry.get("north").state == "approved"
    assert "already" in founded("approve", "north")


def test_approve_with_the_fingerprint_as_the_site_reads_it(founded: Command) -> None:
    founded.enrol("north")
    with pytest.raises(FederationError, match="north was not approved"):
        founded("approve", "north", "--fingerprint", "ffff-4567-89ab-cdef-0123-4567")
    assert founded.registry.get("north").state == "enrolled"
    founded("approve", "north", "--fingerprint", "0123 4567 89AB CDEF 0123 4567")
    assert founded.registry.get("north").state == "approved"
    with pytest.raises(FederationError, match="Expected the fingerprint"):
        founded("approve", "north", "--fingerprint", "ffff")


def test_approve_warns_of_a_stolen_invite(founded: Command) -> None:
    founded.enrol("north")
    founded.registry.put(replace(founded.registry.get("north"), note="invite used again"))
    assert "Warning: invite used again" in founded("approve", "north", answer="n\n")


def test_approve_without_asking(founded: Command) -> None:
    founded.enrol("north")
    founded("approve", "north", "--yes")
    assert founded.registry.get("north").state == "approved"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: None, "No site north was invited"),
        (lambda f: f("invite", "north"), "has not used its invite"),
        (lambda f: (f.enrol("north"), f("revoke", "north")), "north was revoked"),
    ],
)
def test_approve_of_a_site_that_has_not_enrolled(
    founded: Command, prepare: Callable[[Command], object], message: str
) -> None:
    prepare(founded)
    with pytest.raises(FederationError, match=message):
        founded("approve", "north", "--yes")


def test_revoke_shuts_out_until_a_new_invite(founded: Command) -> None:
    founded.enrol("north")
    founded("approve", "north", "--yes")
    with pytest.raises(FederationError, match="already"):
        founded("invite", "north")
    said = founded("revoke", "north")
    assert founded.registry.get("north").state == "revoked"
    assert "medfed federation invite north" in said
    founded("invite", "north")
    record = founded.registry.get("north")
    assert (record.state, record.node_key, record.fingerprint) == ("invited", "", "")
    with pytest.raises(FederationError, match="No site south"):
        founded("revoke", "south")


def test_sites_are_listed_with_their_state(founded: Command) -> None:
    assert "medfed federation invite SITE" in founded("sites")
    founded("invite", "east")
    founded.enrol("north")
    founded.enrol("south")
    founded("approve", "south", "--yes")
    founded.registry.put(replace(founded.registry.get("south"), note="[red]stolen?"))
    founded.registry.put(replace(founded.registry.get("east"), expires="2020-01-01T00:00:00+00:00"))
    title, east, north, south = founded("sites").splitlines()
    assert title.split() == ["Site", "State", "Since", "Fingerprint", "medfed", "Note"]
    assert "invited" in east
    assert "invite expired" in east
    assert FINGERPRINT in north
    assert "waits for approval" in north
    assert "approved" in south
    assert "[red]stolen?" in south


def test_sites_as_json_hold_no_hash_of_a_token(founded: Command) -> None:
    founded("invite", "east")
    founded.enrol("north")
    said = founded("sites", "--json")
    rows = {row["name"]: row for row in json.loads(said)}
    assert [rows[name]["state"] for name in ("east", "north")] == ["invited", "enrolled"]
    assert rows["north"]["fingerprint"] == FINGERPRINT
    assert founded.registry.get("east").token_sha256 not in said


@pytest.mark.parametrize(
    "arguments",
    [["sites"], ["invite", "north"], ["approve", "north"], ["revoke", "north"], ["renew"]],
)
def test_commands_without_a_federation_say_how_to_make_one(
    federation: Command, arguments: list[str]
) -> None:
    with pytest.raises(FederationError, match="medfed federation init"):
        federation(*arguments)
    assert list(federation.folder.iterdir()) == []


def test_file_that_cannot_be_written_is_named(founded: Command) -> None:
    with pytest.raises(FederationError, match=r"absent.*No such file.*user who owns"):
        founded("invite", "north", "--out", "absent/invite")
    Path("file").write_text("")
    with pytest.raises(FederationError, match="Not a directory"):
        founded("init", "a.example", "--home", "file/federation")
