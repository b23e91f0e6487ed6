"""Runs a study many times: every combination of `[sweep]` vary and cases with every seed.

Each is an ordinary run in a folder of its own, with its own report; what is finished is not run
again, what was interrupted goes on. Baselines that are the same in several runs are trained once.
The first seed of all combinations comes before the second.

<sweep folder>/
    sweep.json    the combinations ("cells") and seeds, and where the data is
    study.toml    the study, with its [sweep]
    failures.json why runs failed when they were last tried, by the name of their folder
    runs/c001-s1/  run folder of cell 1 with seed 1
"""

import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medfed.common.errors import MedfedError, RunError, StudyError
from medfed.common.files import read_json, write_atomically, write_json
from medfed.common.models import check_model
from medfed.common.study import StudyConfig, to_plain
from medfed.common.study_file import load_study, names_of, parse_study, study_to_toml
from medfed.server.records import ArmFolder
from medfed.simulations.finishing import run_to_report
from medfed.simulations.plugins import complete
from medfed.simulations.reporting.run_data import SWEEP_FILE
from medfed.simulations.study import Options, Preparing, exists_already, start_study

log = logging.getLogger(__name__)

FAILURES_FILE = "failures.json"
Watch = Callable[["PlannedRun", StudyConfig], AbstractContextManager[Preparing]]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return each dotted key's last part, or as many of its last parts as tell it from the rest."""

    def ends(key: str) -> list[str]:
        parts = names_of(key)
        return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]

    every = [end for key in keys for end in ends(key)]
    return {key: next((e for e in ends(key) if every.count(e) == 1), key) for key in keys}


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        name: c001, c002, ...
        settings: Value of each varied key; None where a case leaves the study's own, unset.
        given: The keys that its case and vary give; None for all.
    """

    name: str
    settings: Mapping[str, Any]
    given: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The values with the last part of their keys, e.g. `alpha 0.1, algorithm fedavg`."""
        names = short_keys(list(self.settings))
        shown = self.settings if self.given is None else self.given
        values = {key: self.settings[key] for key in shown}
        parts = [f"{names[key]} {value}" for key, value in values.items() if value is not None]
        return ", ".join(parts) or "as it is"

    @property
    def title(self) -> str:
        """Name and label: labels are cut in figures, where several may begin alike."""
        return f"{self.name}: {self.label}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: a cell with a seed, and its folder."""

    cell: Cell
    seed: int
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether every arm has ended well and the report is written."""
        if not (self.folder / "report.html").exists():
            return False
        arms = read_json(self.folder / "simulation.json")["arms"]
        outcomes = [ArmFolder(self.folder / "arms" / arm).read_outcome() for arm in arms]
        return all(outcome is not None and outcome["state"] == "finished" for outcome in outcomes)


def cells_of(study: StudyConfig) -> tuple[Cell, ...]:
    """Return every combination of the values that a study varies."""
    assert study.sweep is not None
    vary, keys = study.sweep.vary, study.sweep.case_keys
    own = {key: _value_of(to_plain(study), key) for key in keys}
    combinations = itertools.product(study.sweep.cases or ({},), itertools.product(*vary.values()))
    return tuple(
        Cell(
            f"c{number:03d}",
            {**own, **case, **dict(zip(vary, values, strict=True))},
            (*case, *vary),
        )
        for number, (case, values) in enumerate(combinations, start=1)
    )


def _value_of(table: Mapping[str, Any], key: str) -> Any:
    """Return what a study has at section.key, None where it is unset."""
    found: Any = table
    for name in names_of(key):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def study_of(study: StudyConfig, cell: Cell, seed: int) -> StudyConfig:
    """Return the study of one run.

    Raises:
        StudyError: The combination is none that a study can have; says which.
    """
    table = to_plain(study)
    table.pop("sweep", None)
    table["study"]["seed"] = seed
    for key, value in cell.settings.items():
        if value is None:
            continue
        *sections, last = names_of(key)
        section = table
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise StudyError(f'sweep.vary."{key}": {name} is a value, not a section.')
        section[last] = value
    return complete(parse_study(table, f"sweep, {cell.label}"))


def planned_runs(folder: Path) -> tuple[PlannedRun, ...]:
    """Return the runs of the sweep in `folder`, in the order in which they run.

    Raises:
        RunError: Not a sweep's folder.
    """
    if not (folder / SWEEP_FILE).exists():
        raise RunError(
            f"Expected a sweep's folder with {SWEEP_FILE} at {folder}, found none. "
            "`medfed simulate` makes one of a study with [sweep]."
        )
    table = read_json(folder / SWEEP_FILE)
    given = table.get("given") or {}
    cells = [
        Cell(
            name,
            dict(zip(table["keys"], values, strict=True)),
            tuple(given[name]) if name in given else None,
        )
        for name, values in table["cells"].items()
    ]
    return tuple(
        PlannedRun(cell, seed, folder / "runs" / f"{cell.name}-s{seed}")
        for seed in table["seeds"]
        for cell in cells
    )


def start_sweep(study: StudyConfig, folder: Path, data: Path | None, options: Options) -> None:
    """Make the folder of a new sweep, once all of its studies are known to be valid.

    Raises:
        StudyError: A combination is none that a study can have.
        RunError: The folder exists already.
    """
    assert study.sweep is not None
    seeds = study.sweep.seeds or (study.study.seed,)
    cells = cells_of(study)
    for cell in cells:
        check_model(study_of(study, cell, seeds[0]))
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise exists_already(folder) from None
    (folder / "runs").mkdir()
    write_atomically(folder / "study.toml", study_to_toml(study).encode())
    write_json(
        folder / SWEEP_FILE,
        {
            "keys": list(cells[0].settings),
            "cells": {cell.name: list(cell.settings.values()) for cell in cells},
            "given": {cell.name: list(cell.given or ()) for cell in cells},
            "seeds": list(seeds),
            "data": str(data.resolve()) if data else "",
            "strict": options.strict,
        },
    )


def run_sweep(folder: Path, options: Options, watch: Watch) -> dict[str, str]:
    """Bring every run of a sweep to its end, from wherever it stands.

    Args:
        folder: Of `start_sweep`.
        options: How to run.
        watch: Shows one run while it goes on.

    Returns:
        Why runs failed, by the name of their folder. The others went on.

    Raises:
        RunError: The sweep's study was changed since runs were started.
    """
    failures: dict[str, str] = {}
    write_json(folder / FAILURES_FILE, failures)
    options = replace(options, siblings=folder / "runs")
    _check_same_study(folder)
    for run, study in _unfinished(folder):
        try:
            # The last file of a start: without it nothing has been done yet.
            if not (run.folder / "environment.json").exists():
                shutil.rmtree(run.folder, ignore_errors=True)
                table = read_json(folder / SWEEP_FILE)
                data = Path(table["data"]) if table["data"] else None
                start_study(study, run.folder, data, options)
            with watch(run, study) as preparing, _faults_kept_apart():
                run_to_report(run.folder, options, preparing)
        except MedfedError as error:
            log.warning("%s failed: %s", run.folder.name, error)
            failures[run.folder.name] = str(error)
            write_json(folder / FAILURES_FILE, failures)
    return failures


@contextmanager
def _faults_kept_apart() -> Iterator[None]:
    """A fault of one run, a plug-in's or medfed's own, does not cost the night's others.

    A full disk does: the others would meet it too.
    """
    try:
        yield
    except (MedfedError, OSError):
        raise
    except Exception as error:
        log.exception("The run failed.")
        raise RunError(
            f"{type(error).__name__}: {error}. medfed.log in the run's folder has the traceback."
        ) from error


def _check_same_study(folder: Path) -> None:
    study = load_study(folder / "study.toml")
    for run in planned_runs(folder):
        if not (run.folder / "environment.json").exists():
            continue
        if load_study(run.folder / "study.toml") != study_of(study, run.cell, run.seed):
            raise RunError(
                f"{folder / 'study.toml'} is not the study that {run.folder.name} was started "
                "with: its runs could not be compared. Put it back as it was, or start another "
                "sweep."
            )


def _unfinished(folder: Path) -> Iterator[tuple[PlannedRun, StudyConfig]]:
    study = load_study(folder / "study.toml")
    for run in planned_runs(folder):
        if not run.is_finished:
            yield run, study_of(study, run.cell, run.seed)
