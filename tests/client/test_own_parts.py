"""What a site keeps of a run: a round starts from what the one before it left."""

import stat
from pathlib import Path

import numpy as np
import pytest

from medfed.client.own_parts import OwnParts
from medfed.common.state_dicts import StateDict, digest


def part(value: float) -> StateDict:
    # In an order that safetensors does not keep.
    return {"norm.weight": np.full(3, value, np.float32), "norm.bias": np.full(3, -value, "f4")}


@pytest.fixture
def parts(tmp_path: Path) -> OwnParts:
    return OwnParts(tmp_path, "study/federated", "0" * 64)


def value(found: StateDict | None) -> float | None:
    return None if found is None else float(found["norm.weight"][0])


def rounds(parts: OwnParts) -> list[str]:
    return sorted(path.name for path in parts.folder.iterdir())


def test_a_part_comes_back_bit_for_bit_and_in_order(parts: OwnParts, tmp_path: Path) -> None:
    kept: StateDict = {**part(0.1), "norm.count": np.array(7, dtype=np.int64)}
    parts.keep(1, kept)
    found = OwnParts(tmp_path, "study/federated", "0" * 64).after(1, kept)
    assert found is not None
    assert digest(found) == digest(kept)


def test_a_round_sees_the_last_one_before_it_in_which_the_site_trained(parts: OwnParts) -> None:
    assert parts.after(0, part(0)) is None
    parts.keep(2, part(2))
    parts.keep(5, part(5))
    seen = {number: value(parts.after(number, part(0))) for number in range(8)}
    assert seen == {0: None, 1: None, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 7: 5}


def test_a_round_that_is_asked_for_again_starts_from_the_same(parts: OwnParts) -> None:
    for number in (1, 2, 3):
        parts.keep(number, part(number))
    assert value(parts.after(2, part(0))) == 2
    parts.keep(3, part(3.5))
    assert (value(parts.after(2, part(0))), value(parts.after(3, part(0)))) == (2, 3.5)
    assert len(rounds(parts)) == 2


def test_rounds_of_a_branch_that_was_given_up_are_forgotten(parts: OwnParts) -> None:
    parts.keep(3, part(3))
    parts.keep(4, part(4))
    parts.keep(4, part(4.5))
    parts.keep(3, part(3.5))  # the server stands before round 3 again
    assert rounds(parts) == ["round-00003.safetensors"]
    assert value(parts.after(9, part(0))) == 3.5


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other names", "other shape"])
def test_a_damaged_part_is_as_if_it_had_never_been(
    parts: OwnParts, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts.keep(1, part(1))
    path = parts.folder / "round-00001.safetensors"
    content = bytearray(path.read_bytes())
    expected = part(0)
    if damage == "cut":
        content = content[:-5]
    elif damage == "flipped":
        content[-1] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "other names":
        expected = {"norm.weight": expected["norm.weight"]}
    else:
        expected["norm.bias"] = np.zeros(4, np.float32)
    path.write_bytes(content)
    assert parts.after(1, expected) is None
    assert "begins anew" in caplog.text
    parts.keep(2, part(2))
    assert value(parts.after(2, part(0))) == 2


def test_what_rounds_learned_is_kept_with_the_part_that_it_belongs_to(parts: OwnParts) -> None:
    assert parts.learned(9) == {}
    for number in (1, 2, 4):
        parts.keep(number, part(number), number / 10)
    assert parts.learned(9) == {1: 0.1, 2: 0.2, 4: 0.4}
    assert parts.learned(3) == {1: 0.1, 2: 0.2}
    parts.keep(4, part(4), 0.45)  # asked for again
    assert parts.learned(4) == {1: 0.1, 2: 0.2, 4: 0.45}
    parts.keep(2, part(2), 0.25)  # the server stands before round 2, and round 1 is gone
    assert parts.learned(9) == {2: 0.25}
    parts.keep(3, part(3))
    assert parts.learned(9) == {}


def test_what_was_learned_is_not_read_from_a_damaged_file(parts: OwnParts) -> None:
    parts.keep(1, part(1), 0.1)
    path = parts.folder / "round-00001.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert parts.learned(1) == {}
    parts.keep(2, part(2), 0.2)
    assert parts.learned(2) == {2: 0.2}


def test_runs_and_studies_have_parts_of_their_own(tmp_path: Path) -> None:
    for run, study in (("a", "0"), ("b", "0"), ("a", "1"), ("a/b", "0"), ("a-b", "0")):
        parts = OwnParts(tmp_path, run, study)
        assert parts.after(9, part(0)) is None
        parts.keep(1, part(1))
    assert len(list((tmp_path / "personal").iterdir())) == 5


@pytest.mark.parametrize("run", ["../../up", "/etc/x", "..", "a" * 500, "näme\n"])
def test_a_server_s_name_for_a_run_leads_nowhere_else(tmp_path: Path, run: str) -> None:
    parts = OwnParts(tmp_path, run, "0" * 64)
    parts.keep(1, part(1))
    [folder] = (tmp_path / "personal").iterdir()
    assert folder == parts.folder
    assert len(folder.name) < 100


def test_parts_can_be_read_by_their_owner_only(parts: OwnParts) -> None:
    parts.keep(1, part(1))
    (parts.folder / ".round-00009.safetensors.1.tmp").write_bytes(b"half")
    parts.keep(2, part(2))
    assert rounds(parts) == ["round-00001.safetensors", "round-00002.safetensors"]
    for path in (parts.folder, *parts.folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
