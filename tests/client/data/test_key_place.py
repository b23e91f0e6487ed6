"""One pseudonym key a data set, wherever it was made first."""

import re
import subprocess
from pathlib import Path

import pytest

from medfed.client.data.key_place import KEY_FILE, find_key, share_with_site
from medfed.client.data.pseudonym_key import load_or_create_key
from medfed.common.errors import DataError


def test_key_lies_beside_the_data_set_or_where_it_says(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    assert find_key(tmp_path, stores=stores).path == tmp_path / "keys" / "pseudonym.key"
    assert find_key(tmp_path, named="mine.key", stores=stores).path == tmp_path / "mine.key"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("knows_stores", [True, False])
def test_key_among_the_stores_is_used_and_the_line_that_is_said_moves_it(
    tmp_path: Path, knows_stores: bool
) -> None:
    home = tmp_path / "our data"
    stores = home / "stores"
    key = load_or_create_key(stores / "pseudonym.key")
    given = stores if knows_stores else None
    place = find_key(home, stores=given)
    assert place.path == stores / "pseudonym.key"
    [line] = re.findall("mkdir .*", place.note)
    subprocess.run(["/bin/sh", "-c", line], check=True)
    moved = find_key(home, stores=given)
    assert (moved.path, moved.note) == (home / KEY_FILE, "")
    assert load_or_create_key(moved.path) == key
    assert (home / "keys").stat().st_mode & 0o777 == 0o700
    assert list(stores.iterdir()) == []


def test_two_keys_are_refused_until_the_data_set_names_one(tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "stores" / "pseudonym.key")
    load_or_create_key(tmp_path / KEY_FILE)
    with pytest.raises(DataError, match=r"pseudonym_key = 'keys/pseudonym\.key'"):
        find_key(tmp_path)
    place = find_key(tmp_path, named="stores/pseudonym.key")
    assert place.path == tmp_path / "stores" / "pseudonym.key"
    # The same key twice is one.
    (tmp_path / KEY_FILE).write_bytes(place.path.read_bytes())
    assert find_key(tmp_path).path == tmp_path / KEY_FILE


def test_key_of_a_site_is_used_and_the_data_set_told_to_name_it(tmp_path: Path) -> None:
    site, home = tmp_path / "clinic", tmp_path / "data"
    home.mkdir()
    load_or_create_key(site / KEY_FILE)
    place = find_key(home, site=site)
    assert place.path == site / KEY_FILE
    [named] = re.findall("pseudonym_key = '(.*)'", place.note)
    again = find_key(home, named=named, site=site)
    assert again.path.samefile(site / KEY_FILE)
    assert again.note == ""


def test_second_data_set_of_a_site_is_held_to_the_key_of_the_first(tmp_path: Path) -> None:
    site, first, second = (tmp_path / name for name in ("clinic", "first", "second"))
    key = load_or_create_key(find_key(first, site=site).path)
    share_with_site(first / KEY_FILE, site)
    share_with_site(first / KEY_FILE, site)
    assert find_key(first, site=site).path == first / KEY_FILE
    assert load_or_create_key(find_key(second, site=site).path) == key
    load_or_create_key(second / KEY_FILE)
    for named in ("", str(KEY_FILE)):
        with pytest.raises(DataError, match="2 that differ"):
            find_key(second, named=named, site=site)
    (second / KEY_FILE).unlink()
    (first / KEY_FILE).unlink()
    with pytest.raises(DataError, match="a pseudonym key that is gone"):
        find_key(second, site=site)
