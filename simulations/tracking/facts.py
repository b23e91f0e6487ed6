"""What is told of a run: settings, a point for each figure and round, the last table."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from medfed.common.study import to_plain
from medfed.server.records import RoundRecord
from medfed.simulations.reporting.arms import FEDERATED, Arm
from medfed.simulations.reporting.compare import flattened
from medfed.simulations.reporting.results import comparison_table
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table


class Point(NamedTuple):
    """A figure of a round.

    Attributes:
        arm: federated, pooled, local-SITE.
        figure: Its key, e.g. auroc.
        step: The round, from 1.
        value: The figure.
        time_s: When the round was complete, seconds since 1970.
    """

    arm: str
    figure: str
    step: int
    value: float
    time_s: float

    @property
    def name(self) -> str:
        """Arm and figure, e.g. federated/auroc."""
        return f"{self.arm}/{self.figure}"


@dataclass(frozen=True)
class RunFacts:
    """A run as a tracking tool sees it.

    Attributes:
        folder: Where it is.
        study: The study's name.
        name: The run's.
        identity: The same for this run whenever it is looked at, and for no other.
        settings: The study, one value a dotted key.
        points: In the order of arms and rounds.
        table: Federated, pooled and local side by side.
        is_finished: Whether the federated arm is.
    """

    folder: Path
    study: str
    name: str
    identity: str
    settings: dict[str, str]
    points: tuple[Point, ...]
    table: Table
    is_finished: bool

    @property
    def report(self) -> Path:
        """The run's page; it may not be written yet."""
        return self.folder / "report.html"


def facts_of(run: RunData) -> RunFacts:
    """Return what is told of a run."""
    arm = run.federated
    first = next((r.started for a in run.arms.values() for r in a.rounds), "")
    started = str(run.environment.get("started") or first)
    return RunFacts(
        folder=run.folder,
        study=run.study.study.name,
        name=run.run,
        identity=f"{run.run} {started}",
        settings=flattened(to_plain(run.shown_study)),
        points=tuple(point for name, one in run.arms.items() for point in _points(name, one)),
        table=comparison_table(run),
        is_finished=arm is not None and (arm.outcome or {}).get("state") == "finished",
    )


def _points(name: str, arm: Arm) -> Iterator[Point]:
    for record in arm.rounds:
        time_s = datetime.fromisoformat(record.started).timestamp() + record.seconds
        values = dict(record.metrics or {})
        if name == FEDERATED:
            values |= _cost(record) | _alphas(arm, record.round_number)
        for key, value in values.items():
            yield Point(name, key, record.round_number, float(value), time_s)


def _alphas(arm: Arm, round_number: int) -> dict[str, float]:
    """What sites learned in a round (APFL): only a simulation has their folders to read."""
    return {
        f"alpha/{site}": by_round[round_number]
        for site, by_round in arm.alphas.items()
        if round_number in by_round
    }


def _cost(record: RoundRecord) -> dict[str, float]:
    """What a round took: bytes, seconds, and what has been spent so far at most."""
    sites = record.sites.values()
    spent = [site.epsilon for site in sites if site.epsilon is not None]
    if record.site_epsilon is not None:
        spent = [record.site_epsilon]
    return {
        "bytes": float(sum(site.bytes_down + site.bytes_up for site in sites)),
        "update_bytes": float(sum(site.update_bytes for site in sites)),
        "seconds": record.seconds,
        **({"epsilon": max(spent)} if spent else {}),
    }
