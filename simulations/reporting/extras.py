"""Figures that few runs have: columns of runs side by side, where any of them has one."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from medfed.simulations.reporting import results
from medfed.simulations.reporting.failures import attack_share
from medfed.simulations.reporting.personal import mean_alpha
from medfed.simulations.reporting.run_data import RunData


class Extra(NamedTuple):
    """A figure of a run.

    Attributes:
        title: Heads its column on a page.
        key: Heads it in a file.
        of: Its value, None where a run has none.
        says: What it is, a sentence.
    """

    title: str
    key: str
    of: Callable[[RunData], float | None]
    says: str


_EXTRAS = (
    Extra(
        "Learned alpha",
        "alpha",
        mean_alpha,
        "Learned alpha is the mean over sites of the share of its own weights that each ended with "
        "(APFL), from the simulated sites' own folders: no site sends it.",
    ),
    Extra(
        "Backdoor success",
        "backdoor_success",
        lambda run: attack_share(run, "backdoor", "success"),
        "Backdoor success is the share of held-out images of other classes that the federated "
        "model takes for the target once they have the trigger.",
    ),
    Extra(
        "Without trigger",
        "backdoor_without_trigger",
        lambda run: attack_share(run, "backdoor", "without_trigger"),
        "Without trigger is that share of the same images as they are: mere mistakes.",
    ),
    Extra(
        "Label flip success",
        "label_flip_success",
        lambda run: attack_share(run, "label_flip", "success"),
        "Label flip success is the share of held-out images that the federated model calls what "
        "poisoned sites call their class.",
    ),
)


def extras_of(runs: Iterable[RunData]) -> tuple[Extra, ...]:
    """Return the figures that any of the runs has."""
    every = tuple(runs)
    candidates = (*_EXTRAS, *_gaps(every))
    return tuple(one for one in candidates if any(one.of(run) is not None for run in every))


def _gaps(runs: Iterable[RunData]) -> tuple[Extra, ...]:
    """How far subgroups are apart in the leading figure, for each column that any run compares."""
    found = {
        (column, results.leading(run))
        for run in runs
        for column in run.uncertainty.get("gaps") or {}
    }
    return tuple(
        Extra(
            f"{shown.title} gap, {column}",
            f"{shown.key}_gap_{column}",
            partial(_gap, column=column, key=shown.key),
            "A gap is the federated model's figure in the subgroup where it is best minus that in "
            "the one where it is worst.",
        )
        for column, shown in sorted(found, key=lambda one: (one[0], one[1].key))
    )


def _gap(run: RunData, *, column: str, key: str) -> float | None:
    gap = (run.uncertainty.get("gaps") or {}).get(column, {}).get(key)
    return None if gap is None else float(gap["value"])
