"""What a membership attack's scores are worth: ROC, its area, rates with exact intervals.

A higher score says "was in training". Units are patients (or records); intervals take them as
independent. That is exact for one patient in one run over the draw of who took part, and close for
many: one patient's presence hardly moves another's score.

Shapes: M members, H held-out units.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm, rankdata

Scores = npt.NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class OperatingPoint:
    """How the attack does where it accuses at most a stated share of the innocent.

    Attributes:
        target_fpr: That share.
        fpr: Share of held-out units accused, with its interval.
        tpr: Share of members accused, with its interval.
    """

    target_fpr: float
    fpr: Interval
    tpr: Interval


def roc(members_M: Scores, held_out_H: Scores) -> tuple[Scores, Scores]:
    """Return FPR and TPR from (0, 0) to (1, 1), one point a distinct score, highest first."""
    scores = np.concatenate([members_M, held_out_H])
    is_member = np.arange(len(scores)) < len(members_M)
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(is_member[order])[last_of_score]
    alarms = last_of_score + 1 - hits
    tpr = np.concatenate([[0.0], hits / len(members_M)])
    return np.concatenate([[0.0], alarms / len(held_out_H)]), tpr


def auc(members_M: Scores, held_out_H: Scores) -> float:
    """Return the chance that a member scores above a held-out unit; ties count half."""
    ranks = rankdata(np.concatenate([members_M, held_out_H]))
    m, h = len(members_M), len(held_out_H)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * h))


def auc_interval(
    members_M: Scores, held_out_H: Scores, rng: np.random.Generator, *, repeats: int = 1000
) -> Interval:
    """Return the area under the ROC with its bootstrap percentile interval over units."""
    m, h = len(members_M), len(held_out_H)
    areas = [
        auc(members_M[rng.integers(m, size=m)], held_out_H[rng.integers(h, size=h)])
        for _ in range(repeats)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(areas, [tail, 1 - tail])
    return Interval(auc(members_M, held_out_H), float(low), float(high))


def clopper_pearson(hits: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the share `hits` / `trials` with its exact two-sided binomial interval.

    Reference: Clopper and Pearson 1934, Biometrika 26:404.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"Expected 0 <= hits <= trials and a trial, got {hits} of {trials}.")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return Interval(hits / trials, low, high)


def operating_point(
    members_M: Scores, held_out_H: Scores, target_fpr: float, confidence: float = CONFIDENCE
) -> OperatingPoint:
    """Return the rates at the lowest threshold that accuses at most `target_fpr` of the held-out.

    The threshold is a held-out score: it says nothing about the members, so their rate is binomial;
    and the true FPR above the k-th of H scores follows the Beta law whose quantile is just the
    Clopper-Pearson bound. Both intervals are therefore exact although the threshold is chosen.
    """
    # A hair more, so that 1 % of 300 is 3 whatever 0.01 * 300 rounds to.
    allowed = math.floor(target_fpr * len(held_out_H) + 1e-9)
    threshold = np.sort(held_out_H)[::-1][allowed] if allowed < len(held_out_H) else -math.inf
    return OperatingPoint(
        target_fpr,
        clopper_pearson(int((held_out_H > threshold).sum()), len(held_out_H), confidence),
        clopper_pearson(int((members_M > threshold).sum()), len(members_M), confidence),
    )


def advantage(members_M: Scores, held_out_H: Scores) -> float:
    """Return the largest TPR minus FPR; above 0 by chance alone, see `chance_advantage`."""
    fpr, tpr = roc(members_M, held_out_H)
    return float((tpr - fpr).max())


def chance_advantage(num_members: int, num_held_out: int) -> float:
    """Return what an attack at chance stays below in 95 % of cases (one-sided Smirnov test)."""
    spread = math.sqrt((num_members + num_held_out) / (num_members * num_held_out))
    return min(1.0, math.sqrt(-math.log(1 - CONFIDENCE) / 2) * spread)


def allowed_tpr(fpr: float, epsilon: float, delta: float) -> float:
    """Return the highest TPR that (epsilon, delta) allows at `fpr`, whatever the attack.

    Both TPR <= e^epsilon FPR + delta and, of the innocent, 1 - FPR <= e^epsilon (1 - TPR) + delta.

    Reference: Kairouz et al. 2015, https://arxiv.org/abs/1311.0776
    """
    if epsilon > 700:
        return 1.0
    factor = math.exp(epsilon)
    return max(0.0, min(1.0, factor * fpr + delta, 1 - (1 - fpr - delta) / factor))


def refutes(point: OperatingPoint, epsilon: float, delta: float) -> bool:
    """Whether the rates contradict the claim: TPR at its lowest against FPR at its highest."""
    return point.tpr.low > allowed_tpr(point.fpr.high, epsilon, delta)


def allowed_identifications(candidates: int, noise_multiplier: float) -> float:
    """Return the highest share of right answers to "whose update is it?" that one release allows.

    For any attack, N candidates alike and clipped to C, and noise N(0, (noise_multiplier C)^2):
    naming candidate i is a test of i's update against noise alone, so its power is at most
    Phi(Phi^-1(a_i) + 1 / noise_multiplier) with levels a_i that sum to 1 (the answers exclude one
    another). The function is concave in the level, so the mean power is highest at 1 / N each.

    Reference: Dong et al. 2019, https://arxiv.org/abs/1905.02383 (trade-off of the Gaussian)
    """
    return float(norm.cdf(norm.ppf(1 / candidates) + 1 / noise_multiplier))
