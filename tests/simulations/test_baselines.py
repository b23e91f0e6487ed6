"""Baselines of a sweep: trained once where they are the same, and only there."""

import shutil
from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder
from medfed.simulations.baselines import take_over_baselines
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.study import Options, prepare_run, run_study, start_study

QUICK = [
    "training.rounds=1",
    "privacy.unit=none",
    "simulation.resamples=0",
    'simulation.arms=["federated","pooled","local"]',
]


def started(study: Path, run: Path, *settings: str) -> Path:
    one = load_study(study, [*QUICK, *settings])
    start_study(one, run, None, Options())
    return run


def weights(run: Path, arm: str) -> bytes:
    return (run / "arms" / arm / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_baseline_is_taken_over_where_it_would_end_in_the_same_weights(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    settings = ("federation.algorithm=fedprox", "federation.proximal_mu=5.0")
    first = started(tiny, runs / "c001-s1")
    run_study(first, Options(workers=1, siblings=runs))
    second = started(tiny, runs / "c002-s1", *settings)
    run_study(second, Options(workers=1, siblings=runs))
    alone = started(tiny, tmp_path / "alone", *settings)
    run_study(alone, Options(workers=1))
    baselines = [arm.name for arm in (alone / "arms").iterdir() if arm.name != "federated"]
    assert len(baselines) == 4
    assert weights(second, "federated") != weights(first, "federated")
    assert weights(second, "federated") == weights(alone, "federated")
    for arm in baselines:
        assert weights(second, arm) == weights(alone, arm)
        assert ArmFolder(second / "arms" / arm).read_plan().run == f"c001-s1/{arm}"
        kept = [run / "arms" / arm / "rounds.jsonl" for run in (first, second)]
        assert kept[0].read_bytes() == kept[1].read_bytes()  # with the times of the first
        assert "Trained in run c001-s1 of this sweep" in load_run(second).arms[arm].note
    assert load_run(alone).arms["pooled"].note == ""

    # Other steps are another baseline; what one site alone has not, all together may have.
    third = started(tiny, runs / "c003-s1", "training.learning_rate=0.01")
    prepare_run(third, siblings=runs)
    assert all(ArmFolder(third / "arms" / arm).read_outcome() is None for arm in baselines)
    other_seed = started(tiny, runs / "c001-s2", "study.seed=99")
    prepare_run(other_seed, siblings=runs)
    assert all(ArmFolder(other_seed / "arms" / arm).read_outcome() is None for arm in baselines)

    # A kill in the middle of it leaves an arm that is there as a whole, and the next start goes on.
    fourth = started(tiny, runs / "c004-s1", *settings)

    def killed(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_run(fourth, siblings=runs)
    assert not (fourth / "simulation.json").exists()
    # Meanwhile the runs that had them are gone: it trains its own.
    for run in (first, second):
        shutil.rmtree(run)
    run_study(fourth, Options(workers=1, siblings=runs))
    for arm in baselines:
        assert weights(fourth, arm) == weights(alone, arm)
        assert ArmFolder(fourth / "arms" / arm).read_plan().run == f"c004-s1/{arm}"
    assert not (fourth / "taking-over").exists()


@pytest.mark.slow
def test_scanners_that_are_replaced_in_another_round_are_another_baseline(
    tiny: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    drift = "simulation.failures.drift.from_round.scanner-1="
    first = started(tiny, runs / "c001-s1", "training.rounds=2", f"{drift}1")
    run_study(first, Options(workers=1))
    for name, when, taken in (("same", 1, True), ("other", 2, False)):
        run = started(tiny, runs / name, "training.rounds=2", f"{drift}{when}")
        study = prepare_run(run)
        take_over_baselines(run, study, ["federated", "pooled", "local-scanner-1"], runs)
        outcomes = [ArmFolder(run / "arms" / arm).read_outcome() for arm in ("pooled", "federated")]
        assert (outcomes[0] is not None, outcomes[1]) == (taken, None)
