"""The privacy ledger: append-only facts about what was released, kept by whoever releases."""

from medfed.common.ledger.ledger import GENESIS, Entry, Ledger, LockedLedger, Spend, verify

__all__ = ["GENESIS", "Entry", "Ledger", "LockedLedger", "Spend", "verify"]
