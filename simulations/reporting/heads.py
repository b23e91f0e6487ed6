"""The heads of the sites' ledgers that the coordinator signed: its own book of what they hold.

A site's ledger never leaves it. With its head signed each round, entries that the site loses or
changes later are found as soon as anyone holds the ledger against this book.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.common.errors import LedgerError
from medfed.common.ledger import Countersignature
from medfed.common.ledger.countersigning import read_countersignatures
from medfed.simulations.reporting.tables import Table, in_order


@dataclass(frozen=True)
class HeadFacts:
    """What an arm's heads.jsonl holds.

    Attributes:
        signed: Each site's countersignatures, oldest first.
        problem: Why the file cannot be trusted; empty if every signature holds.
    """

    signed: Mapping[str, tuple[Countersignature, ...]]
    problem: str = ""

    @property
    def public_keys(self) -> tuple[str, ...]:
        """The keys that signed, 64 hexadecimal digits each; one, unless the coordinator's changed.
        """  # fmt: skip
        keys = (one.public_key for signed in self.signed.values() for one in signed)
        return tuple(dict.fromkeys(keys))


def read_heads(path: Path) -> HeadFacts | None:
    """Read heads.jsonl and check its signatures; None if there is none."""
    if not path.exists():
        return None
    try:
        found = read_countersignatures(path)
    except LedgerError as error:
        # Without the path: the page is passed around.
        return HeadFacts({}, str(error).replace(f"{path.parent}/", ""))
    names = sorted({one.site for one in found}, key=in_order)
    return HeadFacts({name: tuple(one for one in found if one.site == name) for name in names})


def heads_table(facts: HeadFacts | None) -> Table:
    """Return, for each site, how many heads were signed, and the last."""
    rows = tuple(
        (
            site,
            str(len(signed)),
            f"round {signed[-1].round_number}" if signed[-1].round_number else "words",
            signed[-1].time[:19].replace("T", " "),
            signed[-1].head,
        )
        for site, signed in (facts.signed.items() if facts else ())
    )
    columns = ("Site", "Heads signed", "Last after", "Signed (UTC)", "Last head")
    return Table(columns, rows, text=frozenset({0, 2, 4}))


def heads_introduction(facts: HeadFacts | None) -> str:
    """Say what the countersigned heads are for, and whether their signatures hold."""
    if facts is None:
        return "No ledger head has been signed yet."
    if facts.problem:
        return f"The coordinator's book of ledger heads cannot be trusted: {facts.problem}"
    text = (
        "After each round the coordinator signed the hash of the last entry of each site's ledger "
        "(its head), and the site keeps the signature. All signatures hold. A ledger from which "
        "entries were taken, or that was written anew, no longer holds these heads: a site proves "
        "its ledger with `medfed site ledger export`, and `medfed audit` compares it."
    )
    keys = facts.public_keys
    return f"{text} Signed with the key{'s' if len(keys) > 1 else ''} {', '.join(keys)}."
