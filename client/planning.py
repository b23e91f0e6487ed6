"""What a study would cost a data set of this site, before it takes part.

Reads the study, `site.toml` and the ledger; no images, and it changes nothing: where there is no
ledger yet, none is made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from medfed.client import policy
from medfed.client.site import SiteConfig
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal
from medfed.common.ledger import Spend, Summary, read_ledger
from medfed.common.study import StudyConfig


@dataclass(frozen=True, kw_only=True)
class DataSetPlan:
    """One data set's budget with and without the study. Epsilons are at the site's target_delta.

    Attributes:
        site: The site's name.
        unit: The study's unit of privacy: whom every epsilon here is about.
        noise: Who adds noise: secure or seeded, this site; none, others do (unit site) or nobody
            does, and then no epsilon bounds what the study costs here.
        max_epsilon: The budget.
        target_delta: The delta that the budget is stated at.
        entries: Entries that the ledger holds.
        without_privacy: Whether some of them had no privacy. No epsilon here covers these.
        spent: Epsilon of what the ledger holds.
        alone: Epsilon of this study had nothing been spent: words of reports, statistics and all
            rounds.
        after: Epsilon after the whole study, budget or not. Less than `spent` plus `alone`.
        left: Budget left when the study ends or is stopped, epsilon.
        rounds: Rounds of the study.
        affordable_rounds: Rounds that the budget allows; none if it is not asked.
        stops_at: The round that the budget refuses; 0 for words or statistics, before round 1; none
            if the budget lasts.
        refusal: Why the site would refuse at once, the code that the server learns before the
            detail that it does not; none if it would not.
    """

    site: str
    unit: str
    noise: str
    max_epsilon: float
    target_delta: float
    entries: int
    without_privacy: bool
    spent: float
    alone: float
    after: float
    left: float
    rounds: int
    affordable_rounds: int | None
    stops_at: int | None
    refusal: tuple[RefusalReason, str] | None


def plan_study(study: StudyConfig, site: SiteConfig) -> DataSetPlan:
    """Return what `study` would cost the data set of `site`, over all rounds of a new run."""
    try:
        held = _held(site)
        refusal = _refusal(study, site, held)
    except LedgerError as error:
        held, refusal = Summary(), (RefusalReason.LEDGER, str(error))
    budget, delta = site.policy.max_epsilon, site.policy.target_delta
    one_round = policy.spend_of_round(
        study, site.policy, run="plan", round_number=1, release="plan"
    )
    costs = _costs(study, site, one_round)

    def after(num_releases: int) -> float:
        """Epsilon after so many releases of the study on top of what the ledger holds."""
        return epsilon([*held.events, *costs.events(num_releases)], delta)

    paid = _affordable(after, costs.num_releases, budget)
    bounded = costs.one_round is not None
    return DataSetPlan(
        site=site.name,
        unit=study.privacy.unit,
        noise=one_round.noise,
        max_epsilon=budget,
        target_delta=delta,
        entries=held.num_entries,
        without_privacy=held.without_privacy,
        spent=after(0),
        alone=epsilon(costs.events(costs.num_releases), delta) if bounded else math.inf,
        after=after(costs.num_releases) if bounded else math.inf,
        left=max(0.0, budget - after(paid)),
        rounds=study.training.rounds,
        affordable_rounds=costs.rounds_within(paid) if bounded else None,
        stops_at=costs.round_after(paid) if paid < costs.num_releases else None,
        refusal=refusal,
    )


@dataclass(frozen=True)
class _Costs:
    """What is charged, one after another: words and statistics if asked for, then each round.

    None of it if no epsilon bounds the rounds.
    """

    before: tuple[GaussianEvent, ...]
    one_round: GaussianEvent | None
    rounds: int

    @property
    def num_releases(self) -> int:
        return self.rounds + len(self.before) if self.one_round else 0

    def events(self, num_releases: int) -> list[GaussianEvent]:
        rounds = self.rounds_within(num_releases)
        events = list(self.before[:num_releases])
        if self.one_round is not None and rounds:
            events.append(replace(self.one_round, steps=rounds * self.one_round.steps))
        return events

    def rounds_within(self, num_releases: int) -> int:
        return max(0, num_releases - len(self.before))

    def round_after(self, num_releases: int) -> int:
        """Return the round that comes after so many releases; 0 for what is before round 1."""
        return max(0, num_releases - len(self.before) + 1)


def _costs(study: StudyConfig, site: SiteConfig, one_round: Spend) -> _Costs:
    spends = []
    if _asks_for_words(study):
        spends.append(policy.spend_of_words(study, site.policy, run="plan", release="plan"))
    if study.statistics.collect:
        spends.append(policy.spend_of_statistics(study, site.policy, run="plan", release="plan"))
    before = tuple(spend.event for spend in spends if spend.event is not None)
    return _Costs(before, one_round.event, study.training.rounds)


def _asks_for_words(study: StudyConfig) -> bool:
    return study.task.type == "report" and not study.task.report.vocabulary


def _affordable(after: Callable[[int], float], most: int, budget: float) -> int:
    """Return how many steps end within the budget: epsilon only grows with them."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if after(middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _held(site: SiteConfig) -> Summary:
    """What the ledger holds, verified; nothing if there is none yet."""
    folder = site.state_folder
    # A seal without a ledger is damage, which reading it says.
    if not any((folder / name).exists() for name in ("ledger.jsonl", "ledger.seal")):
        return Summary()
    return Summary.of(entry.spend for entry in read_ledger(folder).entries)


def _refusal(
    study: StudyConfig, site: SiteConfig, held: Summary
) -> tuple[RefusalReason, str] | None:
    try:
        policy.check_study(study, site.policy)
        if _asks_for_words(study):
            policy.check_words(study, site.policy)
        # Without harmonisation a site that says nothing of its data trains all the same.
        if study.data.harmonise != "none":
            policy.check_statistics(study, site.policy)
        policy.check_units(study.privacy.unit, held, site.policy)
    except SiteRefusal as refusal:
        return refusal.reason, str(refusal)
    return None
