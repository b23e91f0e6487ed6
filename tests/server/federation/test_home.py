"""The coordinator's folder: made whole or not at all, read back, never overwritten."""

import re
import stat
from pathlib import Path

import pytest

from medfed.common.errors import FederationError
from medfed.server.federation.home import FederationConfig, FederationHome, init_home, load_home
from medfed.server.federation.pki import own_certificate

CONFIG = FederationConfig(name="demo", address="fed.example.org")


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    return init_home(tmp_path / "federation", CONFIG)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_reads_back_as_it_was_made(home: FederationHome) -> None:
    assert load_home(home.folder) == home
    assert home.config.address == "fed.example.org:8443"


def test_home_writes_down_what_is_not_the_default(tmp_path: Path) -> None:
    config = FederationConfig(
        name="demo", address="[::1]:9", host="127.0.0.1", port=9, control_port=10, metrics_port=11,
        max_upload_mb=0.5,
    )  # fmt: skip
    assert load_home(init_home(tmp_path / "f", config).folder).config == config


def test_federation_file_names_every_key_with_its_meaning(home: FederationHome) -> None:
    text = (home.folder / "federation.toml").read_text()
    for name, field in FederationConfig.model_fields.items():
        assert f"# {' '.join((field.description or '').split())}\n" in text
        assert re.search(rf"(?m)^(# )?{name} = ", text)
    assert "\n# metrics_port = (unset)\n" in text


def test_home_keeps_its_secrets_to_its_owner(home: FederationHome) -> None:
    secret = [
        home.superexec_secret,
        home.control_token,
        home.key,
        home.ca_key,
        home.server_state / "server.key",
    ]
    assert {mode(path) for path in secret} == {0o600}
    assert mode(home.folder) == 0o700
    private = [path for path in home.folder.rglob("*") if path.is_file() and _is_private(path)]
    assert sorted(private) == sorted(secret[2:])
    texts = {path.read_text() for path in secret[:2]}
    assert len(texts) == 2
    assert all(len(bytes.fromhex(text)) == 32 for text in texts)


def _is_private(path: Path) -> bool:
    return b"PRIVATE KEY" in path.read_bytes()


def test_home_keeps_one_coordinator_key(home: FederationHome) -> None:
    key = home.coordinator_key().public_key
    assert load_home(home.folder).coordinator_key().public_key == key
    assert len(bytes.fromhex(key)) == 32


def test_home_is_not_overwritten(home: FederationHome) -> None:
    before = {p: p.read_bytes() for p in home.folder.rglob("*") if p.is_file()}
    with pytest.raises(FederationError, match="holds something already"):
        init_home(home.folder, CONFIG)
    assert {p: p.read_bytes() for p in home.folder.rglob("*") if p.is_file()} == before


def test_home_may_be_an_empty_folder_but_no_file(tmp_path: Path) -> None:
    init_home(tmp_path, CONFIG)
    with pytest.raises(FederationError, match="holds something"):
        init_home(tmp_path / "federation.toml", CONFIG)


@pytest.mark.parametrize("exists", [True, False])
def test_home_that_could_not_be_finished_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "federation"
    if exists:
        folder.mkdir()
    for_another_host = own_certificate("demo", ["other.example.org"])
    with pytest.raises(FederationError, match=r"not made out for fed\.example\.org"):
        init_home(folder, CONFIG, for_another_host)
    assert [path.name for path in tmp_path.iterdir()] == (["federation"] if exists else [])
    assert not exists or not list(folder.iterdir())
    init_home(folder, CONFIG)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "demo"', "address: expected a value"),
        ('name = "demo"\naddress = "a"\nprot = 1', "Did you mean port"),
        ('name = "../x"\naddress = "a"', "name"),
        ('name = "demo"\naddress = "https://a"', "HOST:PORT"),
        ('name = "demo"\naddress = "a"\nport = 70000', "port"),
        ('name = "demo"\naddress = "a"\nport = 8444', "different ports"),
        ('name = "demo"\naddress = "a"\nmetrics_port = 8443', "different ports"),
        ('name = "demo', "Mend that line"),
        ("\xff", "name: expected a value"),
    ],
)
def test_home_with_a_mistake_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "federation.toml").write_text(text)
    if text == "\xff":
        (tmp_path / "federation.toml").write_bytes(b"\xff")
        message = "Save it as UTF-8"
    with pytest.raises(FederationError, match=message):
        load_home(tmp_path)


@pytest.mark.parametrize("name", ["absent", "file/absent"])
def test_home_that_is_not_there_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FederationError, match="medfed federation init"):
        load_home(tmp_path / name)
