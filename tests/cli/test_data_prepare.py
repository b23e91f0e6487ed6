"""`medfed data prepare`: a store under the site's key, named in its site.toml."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from lesions import command, make_site, make_store, run, write_lesions, write_study

from medfed.cli import data_prepare
from medfed.client.data.pseudonym_key import load_or_create_key
from medfed.client.data.pseudonyms import pseudonym
from medfed.client.data.store import open_store, verify_store
from medfed.client.site import load_site
from medfed.common.errors import DataError, UnreadableImageError

app = command(data_prepare)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lesions(tmp_path / "data")


def test_store_goes_where_it_is_told_under_a_key_beside_the_folder(
    tmp_path: Path, study: Path, data: Path
) -> None:
    out = tmp_path / "out"
    printed = run(app, "prepare", study, "--data", data, "--out", out)
    [folder] = out.glob("store-*")
    store = open_store(folder)
    verify_store(store)
    key_file = tmp_path / "keys" / "pseudonym.key"
    assert not list(out.rglob("*.key"))
    assert key_file.stat().st_mode & 0o777 == 0o600
    key = bytes.fromhex(key_file.read_text())
    assert store.patients[0] == pseudonym(key, "patient", "Doe_Jane_000")
    assert "60 images of 30 patients" in printed
    assert str(folder) in printed
    again = run(app, "prepare", study, "--data", data, "--out", out, "--workers", "2")
    assert again == printed
    for path in folder.iterdir():
        assert b"Jane" not in path.read_bytes()


def test_site_gets_its_store_by_its_own_key_and_names_it(
    tmp_path: Path, study: Path, data: Path
) -> None:
    site = make_site(tmp_path / "clinic", make_store(tmp_path / "old"), unit="none")
    comments = [line for line in site.read_text().splitlines() if line.startswith("#")]
    printed = run(app, "prepare", study, "--data", data, "--site", site, "--workers", "2")
    names = load_site(site).data.stores
    assert len(names) == 2
    store = open_store(load_site(site).path(names[1]))
    assert store.folder.parent == tmp_path / "clinic" / "stores"
    key = bytes.fromhex((tmp_path / "clinic" / "keys" / "pseudonym.key").read_text())
    assert store.patients[0] == pseudonym(key, "patient", "Doe_Jane_000")
    text = site.read_text().splitlines()
    assert [line for line in text if line.startswith("#")] == comments
    assert "names it now." in printed
    # Other files, another store: it takes the place of the first.
    (data / "images" / "ISIC_0001.jpg").write_bytes(
        (data / "images" / "ISIC_0000.jpg").read_bytes()
    )
    printed = run(app, "prepare", study, "--data", data, "--site", site)
    assert f"in place of {names[1]}" in " ".join(printed.split())
    assert load_site(site).data.stores[0] == names[0]
    assert len(load_site(site).data.stores) == 2


def test_key_of_an_earlier_version_among_the_stores_is_used(
    tmp_path: Path, study: Path, data: Path
) -> None:
    key = load_or_create_key(tmp_path / "out" / "pseudonym.key")
    result = CliRunner().invoke(
        app, ["prepare", str(study), "--data", str(data), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0
    assert "Move it out, it stays the same key: mkdir" in result.stderr
    [folder] = (tmp_path / "out").glob("store-*")
    assert open_store(folder).patients[0] == pseudonym(key, "patient", "Doe_Jane_000")
    assert not (tmp_path / "keys").exists()


def test_damaged_image_is_told_and_refused_when_strict(
    tmp_path: Path, study: Path, data: Path
) -> None:
    (data / "images" / "ISIC_0007.jpg").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(UnreadableImageError, match="ISIC_0007"):
        run(app, "prepare", study, "--data", data, "--out", tmp_path / "out", "--strict")
    printed = run(app, "prepare", study, "--data", data, "--out", tmp_path / "out")
    assert "1 image(s) could not be used" in printed


def test_both_a_site_and_a_folder_are_refused(tmp_path: Path, study: Path) -> None:
    with pytest.raises(DataError, match="got both"):
        run(app, "prepare", study, "--site", tmp_path / "site.toml", "--out", tmp_path)
