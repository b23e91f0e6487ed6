"""The ledgers of sites and server, read for the report: verified, and epsilon recomputed.

A ledger that cannot be trusted does not stop the report: the page says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError
from medfed.common.ledger import Spend, Summary, read_ledger
from medfed.simulations.reporting.tables import counted

# The inline figure and this one use the same accountant: only another processor's rounding differs.
AGREEMENT = 1e-3


@dataclass(frozen=True)
class LedgerFacts:
    """One ledger, a site's or the server's.

    Attributes:
        spends: Its entries, oldest first; empty if it cannot be trusted.
        problem: Why it cannot be trusted; empty if chain and signatures hold.
    """

    spends: tuple[Spend, ...]
    problem: str = ""

    def epsilon(self, delta: float) -> float:
        """Return what all private entries together cost at `delta`."""
        return epsilon(Summary.of(self.spends).events, delta)

    def until(self, run: str) -> "LedgerFacts":
        """Return the facts up to the last entry of `run`: what the run stated came to no more."""
        last = max((i for i, spend in enumerate(self.spends) if spend.run == run), default=-1)
        return LedgerFacts(self.spends[: last + 1], self.problem)

    @property
    def without_privacy(self) -> int:
        """Releases that no epsilon covers."""
        return sum(spend.unit == "none" for spend in self.spends)

    @property
    def steps(self) -> int:
        """Optimiser steps, or with unit site rounds, each one release; naming words is none."""
        return sum(s.steps for s in self.spends if s.kind == "training" and s.unit != "none")


@dataclass(frozen=True)
class LedgerCheck:
    """Epsilon as the rounds printed it beside epsilon from the ledger.

    Attributes:
        site: The site, or the server.
        entries: Entries of the ledger.
        steps: Optimiser steps over all entries.
        recomputed: From the ledger; None if the ledger cannot be trusted, or holds
            nothing but releases without privacy.
        printed: The last that the rounds printed; None if none did.
        without_privacy: Releases that no epsilon covers.
        problem: Why the ledger cannot be trusted; empty if it can.
        unheard: Rounds after the last that printed, which the site did not answer in time and for
            which it trained, and charged, all the same. Without them the ledger must agree.
        answered: From the ledger without them; None as for `recomputed`.
    """

    site: str
    entries: int
    steps: int
    recomputed: float | None
    printed: float | None
    without_privacy: int
    problem: str
    unheard: int = 0
    answered: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the two lie within 0.1 % of one another, or what is between them is explained."""
        if self._all_without_privacy:
            return self.printed is None
        if self.has_more:
            return True
        return self.recomputed is not None and _alike(self.recomputed, self.printed)

    @property
    def has_more(self) -> bool:
        """Whether the ledger holds what no round could print: the site answered too late."""
        if not self.unheard or self.recomputed is None:
            return False
        return self.answered == self.printed or _alike(self.answered, self.printed)

    @property
    def verdict(self) -> str:
        """In words, for the table."""
        if self.problem:
            return f"ledger not trusted: {self.problem}"
        if self._all_without_privacy and self.printed is None:
            return "without privacy"
        if self.has_more:
            rounds = counted(self.unheard, "round")
            return f"agrees; besides, charged for {rounds} that it did not answer in time"
        if self.recomputed is None or self.printed is None:
            return "no round to compare with"
        if self.agrees:
            besides = f"; besides, {counted(self.without_privacy, 'release')} without privacy"
            return f"agrees{besides if self.without_privacy else ''}"
        more = self.recomputed > self.printed
        # An entry is written before training: a killed round leaves one with no record.
        why = "a round was charged and not recorded" if more else "entries are missing"
        return f"differs: the ledger holds {'more' if more else 'less'} ({why})"

    @property
    def _all_without_privacy(self) -> bool:
        return not self.problem and 0 < self.entries == self.without_privacy


def _alike(found: float | None, printed: float | None) -> bool:
    if found is None or printed is None:
        return False
    return abs(found - printed) <= AGREEMENT * max(printed, 1e-9)


def read_ledgers(folder: Path) -> dict[str, LedgerFacts]:
    """Read `<site>/state/ledger.jsonl` of every site folder in `folder`, by site name."""
    if not folder.is_dir():
        return {}
    found = {site.name: read_ledger_of(site / "state") for site in sorted(folder.iterdir())}
    return {site: facts for site, facts in found.items() if facts is not None}


def check_ledgers(
    ledgers: Mapping[str, LedgerFacts],
    printed: Mapping[str, float],
    delta: float,
    unheard: Mapping[str, frozenset[int]] | None = None,
) -> tuple[LedgerCheck, ...]:
    """Compare each ledger with the last epsilon that the rounds printed for its site.

    Args:
        ledgers: By site.
        printed: The last epsilon that the rounds printed, by site.
        delta: The study's.
        unheard: Rounds after that, which the site did not answer in time; none where missing.
    """
    return tuple(
        _check(site, facts, printed.get(site), delta, (unheard or {}).get(site, frozenset()))
        for site, facts in ledgers.items()
    )


def _check(
    site: str, facts: LedgerFacts, printed: float | None, delta: float, unheard: frozenset[int]
) -> LedgerCheck:
    answered = tuple(
        one for one in facts.spends if one.kind != "training" or one.round_number not in unheard
    )
    found = LedgerFacts(answered, facts.problem)
    return LedgerCheck(
        site=site,
        entries=len(facts.spends),
        steps=facts.steps,
        recomputed=_recompute(facts, delta),
        printed=printed,
        without_privacy=facts.without_privacy,
        problem=facts.problem,
        unheard=len(facts.spends) - len(answered),
        answered=_recompute(found, delta) if answered else None,
    )


def _recompute(facts: LedgerFacts, delta: float) -> float | None:
    if facts.problem or 0 < len(facts.spends) == facts.without_privacy:
        return None
    return facts.epsilon(delta)


def read_ledger_of(state: Path) -> LedgerFacts | None:
    """Read and verify the ledger in a state folder; None if there is none."""
    if not (state / "ledger.jsonl").is_file():
        return None
    # Not `Ledger(state)`: that makes a key where there is none, and a report changes nothing.
    try:
        copy = read_ledger(state)
    except LedgerError as error:
        # Without the path: the page is passed around.
        return LedgerFacts((), str(error).replace(f"{state}/", ""))
    return LedgerFacts(tuple(entry.spend for entry in copy.entries))
