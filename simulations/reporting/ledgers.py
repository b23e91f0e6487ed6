"""The simulated sites' ledgers, read for the report: verified, and epsilon recomputed by PLD.

A ledger that cannot be trusted does not stop the report: the page says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError
from medfed.common.ledger import Spend, verify

# The inline figure and this one use the same accountant: only another processor's rounding differs.
AGREEMENT = 1e-3


@dataclass(frozen=True)
class LedgerFacts:
    """One site's ledger.

    Attributes:
        spends: Its entries, oldest first; empty if it cannot be trusted.
        problem: Why it cannot be trusted; empty if chain and signatures hold.
    """

    spends: tuple[Spend, ...]
    problem: str = ""

    def epsilon(self, delta: float) -> float:
        """Return what all entries together cost at `delta`, by PLD."""
        return epsilon([spend.event for spend in self.spends], delta)

    @property
    def steps(self) -> int:
        """Optimiser steps, each one Gaussian release; naming words is none."""
        return sum(spend.steps for spend in self.spends if spend.kind == "training")


@dataclass(frozen=True)
class LedgerCheck:
    """Epsilon as the rounds printed it beside epsilon from the ledger.

    Attributes:
        site: The site.
        entries: Entries of the ledger.
        steps: Optimiser steps over all entries.
        recomputed: From the ledger, by PLD; None if the ledger cannot be trusted.
        printed: The last that the rounds printed; None if none did.
        problem: Why the ledger cannot be trusted; empty if it can.
    """

    site: str
    entries: int
    steps: int
    recomputed: float | None
    printed: float | None
    problem: str

    @property
    def agrees(self) -> bool:
        """Whether the two lie within 0.1 % of one another."""
        if self.recomputed is None or self.printed is None:
            return False
        return abs(self.recomputed - self.printed) <= AGREEMENT * max(self.printed, 1e-9)

    @property
    def verdict(self) -> str:
        """In words, for the table."""
        if self.problem:
            return f"ledger not trusted: {self.problem}"
        if self.recomputed is None or self.printed is None:
            return "no round to compare with"
        if self.agrees:
            return "agrees"
        more = self.recomputed > self.printed
        # An entry is written before training: a killed round leaves one with no record.
        why = "a round was charged and not recorded" if more else "entries are missing"
        return f"differs: the ledger holds {'more' if more else 'less'} ({why})"


def read_ledgers(folder: Path) -> dict[str, LedgerFacts]:
    """Read `<site>/state/ledger.jsonl` of every site folder in `folder`, by site name."""
    if not folder.is_dir():
        return {}
    return {
        site.name: _read(site / "state")
        for site in sorted(folder.iterdir())
        if (site / "state" / "ledger.jsonl").is_file()
    }


def check_ledgers(
    ledgers: Mapping[str, LedgerFacts], printed: Mapping[str, float], delta: float
) -> tuple[LedgerCheck, ...]:
    """Compare each ledger with the last epsilon that the rounds printed for its site."""
    return tuple(
        LedgerCheck(
            site=site,
            entries=len(facts.spends),
            steps=facts.steps,
            recomputed=None if facts.problem else facts.epsilon(delta),
            printed=printed.get(site),
            problem=facts.problem,
        )
        for site, facts in ledgers.items()
    )


def _read(state: Path) -> LedgerFacts:
    # Not `Ledger(state)`: that makes a key where there is none, and a report changes nothing.
    try:
        key = load_pem_public_key((state / "ledger.pub").read_bytes())
        if not isinstance(key, Ed25519PublicKey):
            return LedgerFacts((), "ledger.pub is not an Ed25519 key")
        lines = (state / "ledger.jsonl").read_bytes().split(b"\n")[:-1]
        entries = verify([line + b"\n" for line in lines], key, "ledger.jsonl")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        return LedgerFacts((), f"ledger.pub or ledger.jsonl cannot be read ({_short(error)})")
    except LedgerError as error:
        return LedgerFacts((), str(error))
    return LedgerFacts(tuple(entry.spend for entry in entries))


def _short(error: Exception) -> str:
    """Without the path that an OSError names: the page is passed around."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
