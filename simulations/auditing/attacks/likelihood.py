"""LiRA and RMIA: is a unit's loss under the model what it is for models that saw the unit?

A model's loss on a patient says more of how hard the patient is than of membership. Reference
models, trained on known random halves of the same patients, tell the two apart.

Shapes: R reference models, U units (patients or records), N images.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Below it a float32 loss is rounding; exp(-loss) is 1.
_SMALLEST_LOSS = 1e-7


def confidences(losses: Floats) -> Floats:
    """Return log(p / (1 - p)) with p = exp(-loss): of a cross-entropy the logit of the true class.

    Close to normal where losses are not, which LiRA needs. Any loss that is at least 0 will do.

    Reference: Carlini et al. 2022, https://arxiv.org/abs/2112.03570, section IV.A
    """
    losses = np.maximum(losses, _SMALLEST_LOSS)
    values: Floats = -losses - np.log(-np.expm1(-losses))
    return values


def lira_scores(target_U: Floats, references_RU: Floats, trained_on_RU: Bools) -> Floats:
    """Return the log likelihood ratio "in training" against "not" of each unit's confidence.

    Normal laws with one mean a unit and side, and one variance for all: with few reference models a
    variance of each unit's own is mostly noise (section VI.B), and one for both sides keeps the
    score monotone in the confidence where the model is unlike its references.

    Args:
        target_U: Confidence of the attacked model in each unit.
        references_RU: The same for each reference model.
        trained_on_RU: Which reference model was trained on which unit; at least one was and one was
            not, of each unit.

    Reference: Carlini et al. 2022, https://arxiv.org/abs/2112.03570, algorithm 1
    """
    mean_in_U = _mean_where(references_RU, trained_on_RU)
    mean_out_U = _mean_where(references_RU, ~trained_on_RU)
    rest_RU = references_RU - np.where(trained_on_RU, mean_in_U, mean_out_U)
    degrees = rest_RU.size - 2 * rest_RU.shape[1]
    variance = max(float((rest_RU**2).sum()) / max(degrees, 1), 1e-12)
    middle_U = (mean_in_U + mean_out_U) / 2
    scores: Floats = (mean_in_U - mean_out_U) * (target_U - middle_U) / variance
    return scores


def rmia_scores(target_U: Floats, references_RU: Floats) -> Floats:
    """Return the share of the other units z whose likelihood ratio x's own reaches (gamma = 1).

    The ratio is p(x | model) / p(x), with p(x) the mean over the reference models, half of which
    were trained on x. A larger gamma only moves the threshold and makes ties.

    Args:
        target_U: Log likelihood (minus the loss) of each unit under the attacked model.
        references_RU: The same under each reference model.

    Reference: Zarifzadeh et al. 2024, https://arxiv.org/abs/2312.03262, equations 3 and 9
    """
    num_models, num_units = references_RU.shape
    ratios_U = target_U - (logsumexp(references_RU, axis=0) - math.log(num_models))
    # Ties count half, so that equal units score alike.
    scores: Floats = (rankdata(ratios_U) - 1) / max(1, num_units - 1)
    return scores


def _mean_where(values_RU: Floats, where_RU: Bools) -> Floats:
    counts_U = where_RU.sum(axis=0)
    if not counts_U.all():
        raise ValueError(
            "Expected for each unit a reference model on either side, got some without. Train "
            "them in pairs, on a half and on the other half."
        )
    means: Floats = (values_RU * where_RU).sum(axis=0) / counts_U
    return means
