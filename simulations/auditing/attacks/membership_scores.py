"""Three membership attacks on one model, and how they do where the truth is known.

    loss   low loss means member; needs nothing but the model (Yeom et al. 2018,
           https://arxiv.org/abs/1709.01604)
    lira, rmia   against reference models; see `likelihood`

Each reference model is attacked as well, with the others as its references. It was trained without
privacy on units that are known: that is the proof that the attack works. And units that it was
*not* trained on, told apart by whether the study was, are the control: nothing can tell them apart
but a difference between the study's own two sides, as when an official split is not random.

Shapes: R reference models, U units, N images.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from medfed.simulations.auditing.attacks.likelihood import confidences, lira_scores, rmia_scores
from medfed.simulations.auditing.attacks.rates import CONFIDENCE, Interval, auc
from medfed.simulations.auditing.attacks.references import References, unit_means
from medfed.simulations.auditing.attacks.units import Units

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def attack_scores(losses_N: Floats, references: References, units: Units) -> Mapping[str, Floats]:
    """Return each attack's score of each unit, [U], for the model with these losses."""
    return {
        "loss": unit_means(-losses_N, units),
        "lira": lira_scores(
            unit_means(confidences(losses_N), units),
            unit_means(confidences(references.losses_RN), units),
            references.trained_on_RU,
        ),
        "rmia": rmia_scores(unit_means(-losses_N, units), unit_means(-references.losses_RN, units)),
    }


def reference_scores(references: References, units: Units) -> Mapping[str, Floats]:
    """Return each attack's scores [R, U] of the reference models themselves.

    Each is attacked with the other pairs: with its own other half among them, units that it has not
    seen would have been seen by more of the rest, and the attack would look better than it is.
    """
    num_models = len(references.losses_RN)
    rows = []
    for number in range(num_models):
        others = np.arange(num_models) // 2 != number // 2
        rest = References(
            references.losses_RN[others],
            references.trained_on_RU[others],
            references.passes,
            references.rate_cut,
        )
        rows.append(attack_scores(references.losses_RN[number], rest, units))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def mean_auc(
    scores_RU: Floats,
    positive_RU: Bools,
    asked_RU: Bools,
    rng: np.random.Generator,
    *,
    repeats: int = 200,
) -> Interval:
    """Return the mean area under the ROC over models, with its bootstrap interval over units.

    Args:
        scores_RU: One model's scores a row.
        positive_RU: What the attack should call members.
        asked_RU: Which units count, row by row.
        rng: Of the resampling.
        repeats: Resamples.
    """

    def mean_of(chosen: npt.NDArray[np.int64]) -> float:
        areas = []
        for scores_U, positive_U, asked_U in zip(
            scores_RU[:, chosen], positive_RU[:, chosen], asked_RU[:, chosen], strict=True
        ):
            ins, outs = scores_U[asked_U & positive_U], scores_U[asked_U & ~positive_U]
            if len(ins) and len(outs):
                areas.append(auc(ins, outs))
        return float(np.mean(areas)) if areas else 0.5

    num_units = scores_RU.shape[1]
    draws_BU = rng.integers(num_units, size=(repeats, num_units))
    resampled = [mean_of(chosen) for chosen in draws_BU]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(mean_of(np.arange(num_units)), float(low), float(high))
