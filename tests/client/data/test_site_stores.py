"""A new store is named in site.toml: comments stay, and what it repeats goes."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_set import prepare, small_set

from medfed.client.data.site_stores import name_store
from medfed.client.data.store import Store
from medfed.client.site import load_site
from medfed.common.errors import SiteConfigError

TEXT = """\
# Our hospital.
name = "clinic"  # as invited

[data]
# Where the images are.
stores = {stores}  # keep this
public_num_patients = 90

[policy]
unit = "patient"  # never less
"""


def site(folder: Path, stores: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "site.toml"
    path.write_text(TEXT.format(stores=stores))
    path.chmod(0o600)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return prepare(small_set(), tmp_path / "clinic" / "stores", "labels")


@pytest.mark.parametrize(
    "stores",
    [
        '["elsewhere"]',
        "['elsewhere']",
        '[\n  "elsewhere",  # an old one ] with a bracket\n]',
        '[ # "comment"\n"elsewhere" ]',
    ],
)
def test_store_is_added_and_all_else_stays(tmp_path: Path, store: Store, stores: str) -> None:
    path = site(tmp_path / "clinic", stores)
    assert name_store(path, store) == ()
    text = path.read_text()
    assert load_site(path).data.stores == ("elsewhere", f"stores/{store.folder.name}")
    before = tomllib.loads(TEXT.format(stores=stores))
    after = tomllib.loads(text)
    assert {**after, "data": {**after["data"], "stores": ["elsewhere"]}} == before
    for line in TEXT.format(stores=stores).splitlines():
        assert line.partition("#")[2] in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert name_store(path, store) == ()
    assert path.read_text() == text


def test_store_takes_the_place_of_an_older_one_of_the_same_data(
    tmp_path: Path, store: Store
) -> None:
    changed = replace(small_set(), digest="1" * 64)
    newer = prepare(changed, tmp_path / "clinic" / "stores", "labels")
    masks = prepare(small_set(), tmp_path / "outside", "masks")
    path = site(tmp_path / "clinic", f'["{masks.folder}", "stores/{store.folder.name}", "missing"]')
    assert name_store(path, newer) == (f"stores/{store.folder.name}",)
    names = load_site(path).data.stores
    assert names == (str(masks.folder), f"stores/{newer.folder.name}", "missing")


def test_of_several_older_ones_one_place_is_kept(tmp_path: Path, store: Store) -> None:
    others = [
        prepare(replace(small_set(), digest=digit * 64), tmp_path / "clinic" / "stores", "labels")
        for digit in "12"
    ]
    own = [f"stores/{one.folder.name}" for one in (store, *others)]
    path = site(tmp_path / "clinic", f'[\n  "{own[0]}", # old\n  "kept",\n  "{own[1]}" # older\n]')
    assert name_store(path, others[1]) == (own[0], own[1])
    assert load_site(path).data.stores == (own[2], "kept")
    assert "# old\n" in path.read_text()
    assert "# older\n" in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        'name = "clinic"\ndata = {stores = ["x"]}\n',
        'name = "clinic"\ndata.stores = ["x"]\n',
    ],
)
def test_unusual_file_is_left_alone_and_the_line_is_told(
    tmp_path: Path, store: Store, text: str
) -> None:
    path = tmp_path / "clinic" / "site.toml"
    path.write_text(text)
    with pytest.raises(SiteConfigError, match=rf'stores = \["x", "stores/{store.folder.name}"\]'):
        name_store(path, store)
    assert path.read_text() == text
