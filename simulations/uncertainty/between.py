"""Federated models of several runs on the same held-out patients: paired, patient by patient.

Patients are drawn with replacement within each site, the same draws for every run. The models
stay: how much training itself varies is for several seeds to say (`[sweep]`).

Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.common.errors import MedfedError, RunError
from medfed.common.seeding import numpy_rng
from medfed.server.records import ArmFolder
from medfed.simulations.uncertainty.bootstrap import Interval, draw_counts, interval, resampled
from medfed.simulations.uncertainty.patient_sums import PatientSums, patient_sums


@dataclass(frozen=True)
class Paired:
    """One run against the first, on the patients that both were judged on.

    Attributes:
        num_patients: Held-out patients.
        differences: This run minus the first, by figure.
        p: Two-sided, by figure: twice the share of resamples on the smaller side of zero; None
            where the figure is too often not defined.
    """

    num_patients: int
    differences: Mapping[str, Interval]
    p: Mapping[str, float | None]


def against_first(runs: Sequence[Path], *, resamples: int) -> tuple[Paired, ...]:
    """Compare the federated model of every further run with that of the first.

    Raises:
        RunError: A run is not finished, its data is not there, or it was judged on other patients.
    """
    first, *others = [_sums(run) for run in runs]
    for run, sums in zip(runs[1:], others, strict=True):
        if (sums.sites, sums.patients) != (first.sites, first.patients):
            raise RunError(
                f"{run} was judged on other held-out patients than {runs[0]}: no patient can be "
                "paired. Compare runs of the same data set, partition and study.seed, or leave "
                "out --paired."
            )
    keys = [figure.key for figure in first.task.figures]
    counts_RP = draw_counts(first.sites, resamples, numpy_rng(0, "paired"))
    return paired_sums(first, others, keys, counts_RP)


def paired_sums(
    first: PatientSums,
    others: Sequence[PatientSums],
    keys: Sequence[str],
    counts_RP: npt.NDArray[np.int64],
) -> tuple[Paired, ...]:
    """Return what `against_first` does, of sums and draws.

    Args:
        first: What the others are held against.
        others: Of the same patients in the same order.
        keys: Figures.
        counts_RP: How many times each patient is drawn in each resample.
    """
    everyone = np.ones(len(first), dtype=np.int64)
    base, base_draws = first.figures(everyone), resampled(first, counts_RP, keys)
    found = []
    for sums in others:
        own, draws = sums.figures(everyone), resampled(sums, counts_RP, keys)
        shared = [key for key in keys if key in own and key in base]
        between = {key: draws[key] - base_draws[key] for key in shared}
        differences = {key: interval(own[key] - base[key], between[key]) for key in shared}
        ps = {
            key: None if one.low is None else _p(between[key]) for key, one in differences.items()
        }
        found.append(Paired(len(first), differences, ps))
    return tuple(found)


def _p(values_R: npt.NDArray[np.float64]) -> float:
    known = values_R[~np.isnan(values_R)]
    # One more on each side: no finite number of resamples shows a p of zero.
    side = min(int((known <= 0).sum()), int((known >= 0).sum())) + 1
    return min(1.0, 2 * side / (len(known) + 1))


def _sums(run: Path) -> PatientSums:
    arm = run / "arms" / "federated"
    outcome = ArmFolder(arm).read_outcome() if (arm / "sites").is_dir() else None
    if outcome is None or outcome["state"] != "finished":
        raise RunError(
            f"{run} is no simulation whose federated arm is finished: its patients cannot be "
            "looked at one by one. Finish it with medfed simulate --resume, or leave out --paired."
        )
    try:
        return patient_sums(arm, ())
    except (MedfedError, OSError) as error:
        raise RunError(
            f"The held-out images of {run} cannot be read ({error}). Put the prepared store back, "
            "or leave out --paired."
        ) from None
