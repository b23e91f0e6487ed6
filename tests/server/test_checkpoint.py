"""A checkpoint is one whole round, or none."""

import json
from pathlib import Path

import numpy as np
import pytest

from medfed.common.errors import RunError
from medfed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from medfed.server.records import ArmFolder, RoundRecord, RunPlan, SiteRound

WEIGHTS = {
    "z": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(7, dtype=np.int64),
    "m": np.array([np.pi, -0.0], dtype=np.float64),
}


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round_number=number,
        started="2026-11-23T00:00:00.000+00:00",
        seconds=1.5,
        sites={"s": SiteRound(status="ok", weight=3, epsilon=1.25, metrics={"auroc": 0.5})},
        metrics={"auroc": 0.5},
        weights_sha256="x",
    )


def test_checkpoint_survives_bit_for_bit_in_order(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(3)), "study")
    back = load_checkpoint(tmp_path, "study")
    assert back is not None
    assert back.record == record(3)
    assert list(back.weights) == list(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert back.weights[name].tobytes() == array.tobytes()
        assert back.weights[name].dtype == array.dtype
        assert back.weights[name].shape == array.shape


def test_no_checkpoint_before_the_first_round(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, "study") is None


def test_only_the_last_round_is_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(number)), "study")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round-00002.safetensors", "state.json"]


STATES = {
    "sum": {"z": np.array([np.pi, -0.0]), "a": np.array(2.5)},
    "site one": {"z": np.array([1.0, 2.0], dtype=np.float32)},
    "site two": {"z": np.array([3.0, 4.0], dtype=np.float32)},
}


def test_states_of_an_algorithm_survive_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(1), states=STATES), "study")
    back = load_checkpoint(tmp_path, "study")
    assert back is not None
    assert {name: list(state) for name, state in back.states.items()} == {
        name: list(state) for name, state in STATES.items()
    }
    for name, state in STATES.items():
        for key, array in state.items():
            assert back.states[name][key].tobytes() == array.tobytes()
            assert back.states[name][key].dtype == array.dtype
            assert back.states[name][key].shape == array.shape


def test_a_round_writes_the_states_that_it_changed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(1), states=STATES), "study")
    changed = {**STATES, "site two": {"z": np.array([5.0, 4.0], dtype=np.float32)}}
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(2), states=changed), "study")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-00001-state-0.safetensors",
        "round-00001-state-1.safetensors",
        "round-00002-state-2.safetensors",
        "round-00002.safetensors",
        "state.json",
    ]
    # What a kill leaves of the next round is not looked at.
    (tmp_path / "round-00003-state-1.safetensors").write_bytes(b"whole or not")
    back = load_checkpoint(tmp_path, "study")
    assert back is not None
    assert back.states["site two"]["z"].tolist() == [5.0, 4.0]
    assert back.states["site one"]["z"].tolist() == [1.0, 2.0]
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(3)), "study")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_state_that_is_not_the_one_that_was_saved_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(1), states=STATES), "study")
    one, other = (tmp_path / f"round-00001-state-{number}.safetensors" for number in (1, 2))
    one.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match="not those that were saved"):
        load_checkpoint(tmp_path, "study")


def test_kill_between_weights_and_state_leaves_the_round_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(1)), "study")
    # What a kill leaves: the next round's weights, its temporary file, the old state.
    (tmp_path / "round-00002.safetensors").write_bytes(b"whole or not")
    (tmp_path / ".state.json.1.tmp").write_bytes(b"{")
    back = load_checkpoint(tmp_path, "study")
    assert back is not None
    assert back.record.round_number == 1


def test_checkpoint_of_another_study_or_with_other_weights_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(1)), "study")
    with pytest.raises(RunError, match="another study"):
        load_checkpoint(tmp_path, "other")
    save_checkpoint(tmp_path / "2", Checkpoint({"z": WEIGHTS["z"] + 1}, record(1)), "study")
    (tmp_path / "2" / "round-00001.safetensors").replace(tmp_path / "round-00001.safetensors")
    with pytest.raises(RunError):
        load_checkpoint(tmp_path, "study")


def test_truncated_state_is_an_error_with_a_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(WEIGHTS, record(1)), "study")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"state\.json"):
        load_checkpoint(tmp_path, "study")


def test_arm_folder_reads_back_what_it_wrote_and_ignores_a_torn_line(tmp_path: Path) -> None:
    arm = ArmFolder(tmp_path / "arm")
    plan = RunPlan(run="r", train_sites=("s",), evaluate_sites=None)
    arm.write_plan(plan)
    assert arm.read_plan() == plan
    assert arm.read_outcome() is None
    arm.rewrite_rounds([record(1)])
    arm.append_round(record(2))
    with (arm.folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(record(3).to_dict())[:40])
    assert arm.read_rounds() == [record(1), record(2)]
    arm.write_outcome("failed", "why")
    outcome = arm.read_outcome()
    assert outcome is not None
    assert (outcome["state"], outcome["reason"]) == ("failed", "why")
