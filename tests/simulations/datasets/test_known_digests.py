import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.simulations.datasets import known_digests as module
from medfed.simulations.datasets.known_digests import known_digests


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files count as settled at once: the tests' own are a moment old."""
    monkeypatch.setattr(module, "_SETTLED_S", -1.0)
    return


def _digest(path: Path) -> str:
    with known_digests(path.parent) as digest:
        return digest(path)


def _memory(cache: Path) -> dict[str, list[int | str]]:
    [file] = cache.glob("*.json")
    memory: dict[str, list[int | str]] = json.loads(file.read_text())
    return memory


def test_known_digests_are_those_of_the_content(tmp_path: Path, cache: Path, settled: None) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert _digest(path) == _digest(path) == expected
    with known_digests(tmp_path) as digest:
        assert digest(None) == "missing"
        assert digest(tmp_path / "none.bin") == "unreadable"


def test_known_digests_come_from_memory(tmp_path: Path, cache: Path, settled: None) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    _digest(path)
    [file] = cache.glob("*.json")
    memory = _memory(cache)
    # What is remembered is believed: that is what makes it quick.
    memory[str(path)][-1] = "remembered"
    file.write_text(json.dumps(memory))
    assert _digest(path) == "remembered"


def test_known_digests_see_a_change_of_the_same_size_with_the_old_date(
    tmp_path: Path, cache: Path, settled: None
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    before = path.stat()
    _digest(path)
    time.sleep(0.02)
    path.write_bytes(b"abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert _digest(path) == hashlib.sha256(b"abd").hexdigest()


def test_known_digests_do_not_remember_what_just_changed(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    _digest(path)
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b"\xff"])
def test_known_digests_survive_a_damaged_memory(
    tmp_path: Path, cache: Path, settled: None, content: bytes
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    _digest(path)
    [file] = cache.glob("*.json")
    file.write_bytes(content)
    assert _digest(path) == hashlib.sha256(b"abc").hexdigest()
    assert str(path) in _memory(cache)


def test_known_digests_work_without_a_place_to_remember(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "file"))
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert _digest(path) == hashlib.sha256(b"abc").hexdigest()
    assert "cannot be remembered" in caplog.text
