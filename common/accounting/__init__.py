"""From privacy events (what happened) to epsilon (what it costs).

**What an epsilon here covers.** Two data sets are neighbours if one is the other with one unit
added or removed: one patient with all their records, one record, or one site with all its patients,
whichever the events are about. The accountant does not know which; whoever states the epsilon
states the unit, and events of different units must not be composed:

- Removing one *record* of a patient does not remove a unit from a release that counts patients: the
  patient's clipped gradient is replaced by another, which moves the sum by up to twice
  max_grad_norm. An epsilon computed here from such releases is the patient's; a record's does
  not follow from it.
- Removing a *patient* from a release that counts records removes up to all their records at once.
  Such an event says how many (`records_per_unit`), and costs far more than a record's.

Gaussian releases are accounted by their privacy loss distribution (`composition`, `losses`), which
never states less than the truth and at most a few parts in a thousand more. If one discrete
Gaussian is among them, all are accounted by their Renyi divergences (`renyi`), an upper bound.
Google's dp-accounting is the reference that tests hold both to.

Some releases also fail outright with a small probability p, whatever their noise: a word that only
one patient used passes its threshold. That failure is a coin, thrown apart from the noise of all
else, so with it delta(epsilon) is at most (1 - p) delta_noise(epsilon) + p (hockey-stick
divergence is jointly convex). The sum of all p is therefore taken off delta before the noise is
accounted; this holds under any composition and leaves the accountant exact.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from math import fsum, inf

from medfed.common.accounting.composition import loss_epsilon
from medfed.common.accounting.events import GaussianEvent, Mechanism, compose
from medfed.common.accounting.renyi import renyi_epsilon

__all__ = ["GaussianEvent", "Mechanism", "compose", "epsilon", "renyi_epsilon"]

_RESOLVED = 1000.0  # below so many times what was cut off, the numbers of a distribution are rough


def epsilon(events: Iterable[GaussianEvent], delta: float) -> float:
    """Return the epsilon that all `events` together cost at `delta`; 0.0 for none.

    Never below the true one. Infinite if their `extra_delta` leaves nothing of `delta`.
    """
    merged = compose(events)
    left = delta - fsum(event.extra_delta for event in merged)
    noise = tuple(replace(event, extra_delta=0.0) for event in merged)
    return _epsilon(noise, left) if left > 0 else inf


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[GaussianEvent, ...], delta: float) -> float:
    if not events:
        return 0.0
    if any(event.mechanism != "gaussian" for event in events):
        return renyi_epsilon(events, delta)
    value, resolved = loss_epsilon(events, delta)
    return value if delta > _RESOLVED * resolved else min(value, renyi_epsilon(events, delta))
