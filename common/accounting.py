"""From privacy events (what happened) to epsilon (what it costs).

Neighbouring relation: add or remove one unit (a patient, with `unit = "patient"`). The reference is
Google's privacy loss distributions (dp-accounting): pessimistic discretisation, so a stated epsilon
is never below the true one. At interval 1e-3 it lies within 0.01 % of the value at 1e-4 and takes
0.06 s instead of 0.5 s.

References: Koskela et al. 2020, https://arxiv.org/abs/1906.03049;
Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

DISCRETIZATION_INTERVAL = 1e-3


@dataclass(frozen=True, order=True)
class GaussianEvent:
    """`steps` Gaussian releases, each over a Poisson sample of the units at `sample_rate`."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not self.noise_multiplier > 0:
            raise ValueError(f"Expected noise_multiplier > 0, got {self.noise_multiplier}.")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"Expected 0 < sample_rate <= 1, got {self.sample_rate}.")
        if self.steps < 1:
            raise ValueError(f"Expected steps >= 1, got {self.steps}.")


def compose(events: Iterable[GaussianEvent]) -> tuple[GaussianEvent, ...]:
    """Merge events of equal noise and rate, sorted: composition does not depend on the order."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return tuple(sorted(GaussianEvent(noise, rate, n) for (noise, rate), n in steps.items()))


def epsilon(events: Iterable[GaussianEvent], delta: float) -> float:
    """Return the epsilon that all `events` together cost at `delta`; 0.0 for none."""
    return _epsilon(compose(events), delta)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[GaussianEvent, ...], delta: float) -> float:
    if not events:
        return 0.0
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=DISCRETIZATION_INTERVAL,
    )
    for event in events:
        mechanism = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if event.sample_rate < 1:
            mechanism = dp_accounting.PoissonSampledDpEvent(event.sample_rate, mechanism)
        accountant.compose(mechanism, event.steps)
    value = float(accountant.get_epsilon(delta))
    # Tiny spends come out slightly negative. Not max(0.0, value): that would turn NaN into 0.
    return 0.0 if value < 0 else value
