"""What a ledger's entries come to: how many releases of each kind, without looking at each line.

with Ledger(folder).locked() as ledger:
    after = ledger.summary.plus(spend)          # nothing is written yet
    if after.without_privacy: ...               # some training had no privacy: no epsilon
    weaker = after.units - {"patient"}          # which units were spent at
    cost = epsilon(after.events, delta)         # sum of extra_delta included
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from medfed.common.accounting import GaussianEvent, Mechanism
from medfed.common.ledger.spends import Kind, Noise, Spend, Unit


class Group(NamedTuple):
    """Releases that differ in nothing that a cost depends on, but for the number of steps."""

    unit: Unit
    kind: Kind
    noise: Noise
    mechanism: Mechanism
    noise_multiplier: float
    sample_rate: float
    extra_delta: float


class Total(NamedTuple):
    """How much of a group there is."""

    entries: int
    steps: int


@dataclass(frozen=True)
class Summary:
    """The composition of a ledger's entries. It does not depend on their order.

    Attributes:
        groups: What was spent, by kind of release.
    """

    groups: Mapping[Group, Total] = field(default_factory=dict)

    @classmethod
    def of(cls, spends: Iterable[Spend]) -> "Summary":
        """Summarise `spends`."""
        return cls().plus(*spends)

    def plus(self, *spends: Spend) -> "Summary":
        """Return what there would be with `spends` added."""
        groups = dict(self.groups)
        for spend in spends:
            group = Group(*(getattr(spend, name) for name in Group._fields))
            entries, steps = groups.get(group, Total(0, 0))
            groups[group] = Total(entries + 1, steps + spend.steps)
        return Summary(groups)

    @property
    def num_entries(self) -> int:
        """Number of entries."""
        return sum(total.entries for total in self.groups.values())

    @property
    def units(self) -> frozenset[Unit]:
        """The units of privacy that were spent at; none stands for training without privacy."""
        return frozenset(group.unit for group in self.groups)

    @property
    def without_privacy(self) -> bool:
        """Whether some training had no privacy: epsilon is then infinite at every unit."""
        return "none" in self.units

    @property
    def events(self) -> tuple[GaussianEvent, ...]:
        """What the accountant counts, one event a group, over all units but none."""
        return self.events_of("patient", "record", "site")

    def events_of(self, *units: Unit) -> tuple[GaussianEvent, ...]:
        """Return what the accountant counts of the spending at `units`, one event a group."""
        return tuple(
            GaussianEvent(
                group.noise_multiplier,
                group.sample_rate,
                total.steps,
                # Exact, then rounded once: the same figure as math.fsum over the entries.
                float(total.entries * Fraction(group.extra_delta)),
                group.mechanism,
            )
            for group, total in sorted(self.groups.items())
            if group.unit in units and group.unit != "none"
        )

    @property
    def extra_delta(self) -> float:
        """Part of delta that all releases cost besides their noise."""
        parts = (t.entries * Fraction(g.extra_delta) for g, t in self.groups.items())
        return float(sum(parts, Fraction(0)))
