"""A sweep trains each baseline once: a pooled or local arm that another run has is taken over.

What an arm does comes from the files that it is prepared with, so an arm whose files are the same
byte for byte would end in the same weights. Runs that differ in their algorithm, compression or
what else is about several sites have the same baselines.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medfed.common.errors import MedfedError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder, RunPlan

_COPY = "taking-over"


def take_over_baselines(run: Path, study: StudyConfig, arms: Sequence[str], runs: Path) -> None:
    """Put finished baselines of other runs in the place of those that `run` would repeat.

    Their records and ledgers stay those of the run that trained them; the plan's note says so.

    Args:
        run: A run whose arms are prepared, and none has begun.
        study: Its study.
        arms: Its arms.
        runs: Folder of a sweep's runs.
    """
    shutil.rmtree(run / _COPY, ignore_errors=True)
    donors = tuple(_with_the_same_drift(run, study, runs))
    for arm in arms:
        if arm == "federated":
            continue
        folder = run / "arms" / arm
        donor = next((one for one in donors if _repeats(folder, one / "arms" / arm)), None)
        if donor is None:
            continue
        # As a whole or not at all: a kill must not leave half of it.
        shutil.copytree(donor / "arms" / arm, run / _COPY)
        plan = ArmFolder(run / _COPY).read_plan()
        trained_in = plan.run.partition("/")[0]
        note = f"Trained in run {trained_in} of this sweep, whose baselines are the same."
        note = f"{ArmFolder(folder).read_plan().note} {note}".strip()
        ArmFolder(run / _COPY).write_plan(replace(plan, note=note))
        shutil.rmtree(folder)
        (run / _COPY).rename(folder)


def _with_the_same_drift(run: Path, study: StudyConfig, runs: Path) -> Iterator[Path]:
    """Yield runs whose scanners are replaced at the same rounds: no file of an arm says when."""
    assert study.simulation is not None
    for other in sorted(runs.iterdir()):
        if other.name == run.name or not (other / "simulation.json").exists():
            continue
        try:
            simulation = load_study(other / "study.toml").simulation
        except MedfedError:
            continue
        if simulation is not None and simulation.failures.drift == study.simulation.failures.drift:
            yield other


def _repeats(prepared: Path, donor: Path) -> bool:
    """Whether an arm that is prepared would do what a finished one did."""
    outcome = ArmFolder(donor).read_outcome() if donor.is_dir() else None
    if outcome is None or outcome["state"] != "finished":
        return False
    if _what_it_does(prepared) != _what_it_does(donor):
        return False
    files = (path for path in prepared.rglob("*") if path.is_file() and path.name != "plan.json")
    return all(_same_bytes(path, donor / path.relative_to(prepared)) for path in files)


def _what_it_does(arm: Path) -> RunPlan:
    return replace(ArmFolder(arm).read_plan(), run="", note="")


def _same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()
