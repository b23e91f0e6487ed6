"""The bootstrap over held-out patients: intervals of every arm's figures and of their differences.

Patients are drawn with replacement within each site, the same draws for every arm: differences
between arms are paired. What varies is which patients were held out; the models stay. How much
training itself varies is for several seeds to say (`[sweep]`).

Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.simulations.uncertainty.patient_sums import PatientSums

LEVEL = 0.95
# Resamples in which a figure is not defined (a class without a case) say nothing; with more than
# this share of them, nor do the others. A class of one patient is missing from 37 % of resamples,
# one of two from 14 %.
_MOST_UNDEFINED = 0.25
# Averages over classes without figures of each class by the same name, and whose they go with.
_AVERAGED_LIKE = {"average_precision": "auroc", "balanced_accuracy": "sensitivity"}
Figures = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile interval; None where it is not defined often enough."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_counts(
    sites: Sequence[str], resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return how many times each patient is drawn in each resample, [resamples, P].

    Every site keeps its number of patients.
    """
    counts_RP = np.zeros((resamples, len(sites)), dtype=np.int64)
    names = np.array(sites)
    for site in dict.fromkeys(sites):
        mine = np.flatnonzero(names == site)
        counts_RP[:, mine] = rng.multinomial(
            len(mine), np.full(len(mine), 1 / len(mine)), size=resamples
        )
    return counts_RP


def resampled(sums: PatientSums, counts_RP: npt.NDArray[np.int64], keys: Sequence[str]) -> Figures:
    """Return each figure of each resample; NaN where it is not defined.

    Nor is an average over classes where a class is missing that the patients have: it would be
    over others, and another figure.
    """
    found: Figures = {key: np.full(len(counts_RP), np.nan) for key in keys}
    whole = set(sums.figures(np.asarray(counts_RP.any(axis=0), dtype=np.int64)))
    parts = {key: _parts_of(key, whole) for key in keys}
    for index, counts_P in enumerate(counts_RP):
        figures = sums.figures(counts_P)
        for key in keys:
            if parts[key] <= figures.keys():
                found[key][index] = figures.get(key, np.nan)
    return found


def _parts_of(key: str, names: Collection[str]) -> set[str]:
    """Return which of `names` are figures of single classes that `key` averages."""
    start = f"{_AVERAGED_LIKE.get(key, key)}/"
    return {name for name in names if name.startswith(start)}


def interval(value: float | None, values_R: npt.NDArray[np.float64]) -> Interval:
    """Return a figure with the percentile interval of its resamples."""
    known = values_R[~np.isnan(values_R)]
    if value is None or len(known) < (1 - _MOST_UNDEFINED) * len(values_R) or not len(known):
        return Interval(value, None, None)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def compare_arms(
    arms: Mapping[str, PatientSums],
    keys: Sequence[str],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return intervals of every figure for the federated, pooled and local models.

    `local` is the mean over the local models, resample by resample.

    Args:
        arms: Sums by the arm's name, all of the same patients in the same order.
        keys: Figures.
        resamples: How many.
        rng: Draws patients.
    """
    first = next(iter(arms.values()))
    counts_RP = draw_counts(first.sites, resamples, rng)
    everyone = np.ones(len(first), dtype=np.int64)
    values = {name: sums.figures(everyone) for name, sums in arms.items()}
    draws = {name: resampled(sums, counts_RP, keys) for name, sums in arms.items()}
    kinds = {"federated": ["federated"], "pooled": ["pooled"]}
    kinds["local"] = [name for name in arms if name.startswith("local-")]
    kinds = {kind: [n for n in names if n in arms] for kind, names in kinds.items()}
    kinds = {kind: names for kind, names in kinds.items() if names}
    table: dict[str, Any] = {}
    for key in keys:
        mean = {k: _mean([values[n].get(key) for n in names]) for k, names in kinds.items()}
        drawn = {k: np.mean([draws[n][key] for n in names], axis=0) for k, names in kinds.items()}
        table[key] = {
            "arms": {k: interval(mean[k], drawn[k]).to_dict() for k in kinds},
            "differences": {
                k: interval(
                    _difference(mean["federated"], mean[k]), drawn["federated"] - drawn[k]
                ).to_dict()
                for k in kinds
                if k != "federated"
            },
        }
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else None


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
