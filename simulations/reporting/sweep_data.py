"""`load_sweep`: a sweep's runs as far as they are finished, and their figures by cell and seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medfed.common.errors import RunError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.simulations.reporting import conduct, results, spending
from medfed.simulations.reporting.arms import FEDERATED, optional_json
from medfed.simulations.reporting.extras import Extra, extras_of
from medfed.simulations.reporting.run_data import RunData, load_run
from medfed.simulations.sweep import FAILURES_FILE, Cell, planned_runs

if TYPE_CHECKING:
    from medfed.common.tasks import Figure

Values = tuple[float | None, ...]


class Reached(NamedTuple):
    """After how many rounds, and bytes both ways, a model was good enough."""

    rounds: int
    num_bytes: int


@dataclass(frozen=True)
class CellRuns:
    """The runs of one cell.

    Attributes:
        cell: The cell.
        runs: One a seed of the sweep, in its order; None where it is not finished.
    """

    cell: Cell
    runs: tuple[RunData | None, ...]

    @property
    def count(self) -> int:
        """Finished runs."""
        return sum(run is not None for run in self.runs)

    def values(self, of: Callable[[RunData], float | None]) -> Values:
        """Return a figure of each run, None where there is none."""
        return tuple(None if run is None else of(run) for run in self.runs)

    def by_arm(self, key: str, arm: str) -> Values:
        """Return a figure on all sites' held-out images of one of `results.ARMS`."""
        index = results.ARMS.index(arm)
        return self.values(lambda run: results.by_arm(run, key)[index])

    def epsilon(self) -> Values:
        """Return the epsilon that each run states."""
        return self.values(spending.stated_epsilon)

    def num_bytes(self) -> Values:
        """Return the bytes that each run's federated arm sent, both ways."""
        return self.values(lambda run: float(conduct.total_bytes(run.federated)))

    def update_bytes(self) -> Values:
        """Return the bytes of the updates in each run's federated arm."""
        return self.values(lambda run: float(conduct.update_bytes(run.federated)))

    def reaching(self, shown: "Figure", target: float) -> "tuple[Reached | None, ...]":
        """Return when the federated model was first as good as `target`, None where it was not."""

        def reached(run: RunData) -> Reached | None:
            num_bytes = 0
            for record in run.federated.rounds if run.federated else ():
                num_bytes += sum(site.bytes_down + site.bytes_up for site in record.sites.values())
                value = (record.metrics or {}).get(shown.key)
                if value is None:
                    continue
                if value >= target if shown.higher_is_better else value <= target:
                    return Reached(record.round_number, num_bytes)
            return None

        return tuple(None if run is None else reached(run) for run in self.runs)

    def worst_site(self, shown: "Figure") -> Values:
        """Return the federated model's figure at the site where it is worst, a value a run."""

        def worst(run: RunData) -> float | None:
            arm = run.arms.get(FEDERATED)
            sites = (
                [arm.site_metrics(site).get(shown.key) for site in run.site_names] if arm else []
            )
            known = [value for value in sites if value is not None]
            pick = min if shown.higher_is_better else max
            return pick(known) if known else None

        return self.values(worst)


@dataclass(frozen=True)
class SweepData:
    """A sweep.

    Attributes:
        folder: Where it is.
        study: With its [sweep].
        seeds: Its seeds.
        cells: Its cells with their runs.
        failures: Why runs failed when they were last tried, by the name of their folder.
    """

    folder: Path
    study: StudyConfig
    seeds: tuple[int, ...]
    cells: tuple[CellRuns, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def some_run(self) -> RunData | None:
        """A finished run: cells may have different tasks, but a table has one set of figures."""
        return next((run for cell in self.cells for run in cell.runs if run is not None), None)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Figures that some finished runs have, and others need not."""
        return extras_of(run for cell in self.cells for run in cell.runs if run is not None)

    @property
    def num_finished(self) -> int:
        """Finished runs."""
        return sum(cell.count for cell in self.cells)

    @property
    def num_planned(self) -> int:
        """All runs."""
        return len(self.cells) * len(self.seeds)


def load_sweep(folder: Path) -> SweepData:
    """Read a sweep's folder.

    Raises:
        RunError: Not a sweep's folder, or a damaged file.
    """
    plan = planned_runs(folder)
    seeds = tuple(dict.fromkeys(run.seed for run in plan))
    cells = {run.cell.name: run.cell for run in plan}
    found = {
        (run.cell.name, run.seed): load_run(run.folder) if run.is_finished else None for run in plan
    }
    study = load_study(folder / "study.toml")
    if study.sweep is None:
        raise RunError(f"{folder / 'study.toml'} has lost its [sweep]. Start the sweep again.")
    return SweepData(
        folder=folder,
        study=study,
        seeds=seeds,
        cells=tuple(
            CellRuns(cell, tuple(found[name, seed] for seed in seeds))
            for name, cell in cells.items()
        ),
        failures={
            str(name): str(why) for name, why in optional_json(folder / FAILURES_FILE).items()
        },
    )
