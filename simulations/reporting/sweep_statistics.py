"""Figures of several seeds: means, spreads, and differences paired by seed.

Two arms, or two cells, of one seed share partition and split, so their difference says more than
two means side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from medfed.simulations.reporting.tables import ABSENT, figure

_LEVEL = 0.95
# Figures are no further from one another than this by rounding alone.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes:
        mean: None without a value.
        deviation: Sample standard deviation; None with fewer than two values.
        count: Values.
    """

    mean: float | None
    deviation: float | None
    count: int

    def text(self, digits: int = 3) -> str:
        """`0.812 ± 0.013`, or the mean alone, or a dash."""
        if self.mean is None or self.deviation is None:
            return figure(self.mean, digits)
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """A difference paired by seed.

    Attributes:
        mean: Mean difference; None without a pair.
        low: Lower end of the 95 % interval of the mean (Student's t); None with fewer than two.
        high: Upper end.
        p: Of the two-sided paired t-test; None with fewer than two pairs, or without any spread.
        count: Pairs.
    """

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    count: int

    def text(self) -> str:
        """`+0.012 (-0.003 to +0.027)`, the mean alone, or a dash."""
        if self.mean is None:
            return ABSENT
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def p_text(p: float | None) -> str:
    """`0.031`, `< 0.001`, or a dash."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def corrected(ps: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p values corrected for their number; None, which was no test, stays None.

    Reference: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    found: list[float | None] = [None] * len(ps)
    known = sorted((p, number) for number, p in enumerate(ps) if p is not None)
    largest = 0.0
    for rank, (p, number) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        found[number] = largest
    return tuple(found)


def summarise(values: Sequence[float | None]) -> Summary:
    """Return mean and sample standard deviation of the known values."""
    known = [value for value in values if value is not None]
    return Summary(
        mean=fmean(known) if known else None,
        deviation=stdev(known) if len(known) > 1 else None,
        count=len(known),
    )


def paired_difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Difference:
    """Return ours minus theirs over the seeds that both have.

    Args:
        ours: A value a seed, None where there is none.
        theirs: The same seeds.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    differences = [a - b for a, b in pairs]
    if not differences:
        return Difference(None, None, None, None, 0)
    mean, count = fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, None, None, None, count)
    # SciPy takes a while to import, and `medfed --help` gets this far.
    from scipy import stats

    error = stdev(differences) / math.sqrt(count)
    if error < _ROUNDING * max(1.0, abs(mean)):
        error = 0.0
    half = float(stats.t.ppf((1 + _LEVEL) / 2, count - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if error > 0 else None
    return Difference(mean, mean - half, mean + half, p, count)
