import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medfed.client.data.pseudonym_key import load_or_create_key
from medfed.common.errors import DataError


def test_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pseudonym.key"
    key = load_or_create_key(path)
    content = path.read_bytes()
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_key(path) == key
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["pseudonym.key"]
    assert load_or_create_key(tmp_path / "other.key") != key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_key_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "pseudonym.key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(DataError, match="owner alone"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"ab" * 31, b"zz" * 32, b"ab" * 33, b"\0" * 64])
def test_damaged_key_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pseudonym.key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(DataError, match="backup"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be"):
        load_or_create_key(tmp_path)


def test_all_who_start_at_once_get_one_key(tmp_path: Path) -> None:
    path = tmp_path / "pseudonym.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: load_or_create_key(path), range(32)))
    assert len(keys) == 1
