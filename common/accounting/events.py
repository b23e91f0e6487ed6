"""What happened: Gaussian releases, as an accountant counts them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum
from typing import Literal

Mechanism = Literal["gaussian", "discrete_gaussian"]


@dataclass(frozen=True, order=True)
class GaussianEvent:
    """`steps` releases of a sum with Gaussian noise, each over a Poisson sample of the units.

    Attributes:
        noise_multiplier: Noise standard deviation over what adding or removing one unit can
            change. For discrete_gaussian, 1 / epsilon in the sense of Kairouz et al. 2021,
            theorem 1: what a sum of several discrete Gaussians lacks to be one is the caller's
            to take off.
        sample_rate: Probability with which each unit enters a release, alone; 1 for all of them.
        steps: Number of releases.
        extra_delta: Bounds the probability that all these releases together fail, whatever the
            noise.
        mechanism: gaussian; or discrete_gaussian, noise on integers, of which only the Renyi
            divergence is known (that of the Gaussian: Canonne et al. 2020, theorem 4).
        records_per_unit: If the unit is a patient but releases count records: how many records
            of the patient each enter a release, alone, with sample_rate. noise_multiplier is then
            over what one record can change. 1 where releases count the unit itself.

    References: Canonne et al. 2020, https://arxiv.org/abs/2004.00010;
    Kairouz et al. 2021, https://arxiv.org/abs/2102.06387.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    extra_delta: float = 0.0
    mechanism: Mechanism = "gaussian"
    records_per_unit: int = 1

    def __post_init__(self) -> None:
        if not self.noise_multiplier > 0:
            raise ValueError(f"Expected noise_multiplier > 0, got {self.noise_multiplier}.")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"Expected 0 < sample_rate <= 1, got {self.sample_rate}.")
        if self.steps < 1:
            raise ValueError(f"Expected steps >= 1, got {self.steps}.")
        if not self.extra_delta >= 0:
            raise ValueError(f"Expected extra_delta >= 0, got {self.extra_delta}.")
        if self.mechanism not in ("gaussian", "discrete_gaussian"):
            raise ValueError(
                f"Expected mechanism gaussian or discrete_gaussian, got {self.mechanism!r}."
            )
        if self.mechanism == "discrete_gaussian" and self.sample_rate != 1:
            raise ValueError(
                f"Expected sample_rate 1 with discrete_gaussian, got {self.sample_rate}: nothing "
                "tight is known of it under sampling."
            )
        if self.records_per_unit < 1:
            raise ValueError(f"Expected records_per_unit >= 1, got {self.records_per_unit}.")


def compose(events: Iterable[GaussianEvent]) -> tuple[GaussianEvent, ...]:
    """Merge events that differ in steps and extra_delta only, sorted: order does not matter."""
    alike: defaultdict[tuple[float, float, Mechanism, int], list[GaussianEvent]]
    alike = defaultdict(list)
    for e in events:
        alike[e.noise_multiplier, e.sample_rate, e.mechanism, e.records_per_unit].append(e)
    return tuple(
        GaussianEvent(
            noise,
            rate,
            sum(e.steps for e in group),
            fsum(e.extra_delta for e in group),
            mechanism,
            records,
        )
        for (noise, rate, mechanism, records), group in sorted(alike.items())
    )
