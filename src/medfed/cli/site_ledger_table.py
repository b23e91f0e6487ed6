"""How `medfed site ledger show` lays a ledger out: entries, epsilon after them, budget left."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from medfed.client.site import SiteConfig
    from medfed.common.ledger import Entry, LedgerCopy, Spend, Summary

_MOST_ACCOUNTS = 100
_COLUMNS: "dict[str, JustifyMethod]" = {
    "": "right",
    "Time (UTC)": "left",
    "Release": "left",
    "Run": "left",
    "Unit": "left",
    "Noise": "left",
    "Rate": "right",
    "Steps": "right",
    "ε after": "right",
}


def list_entries(
    entries: "Sequence[Entry]", last: int, delta: float
) -> tuple[list[dict[str, Any]], "Summary"]:
    """Return the entries to show, with the epsilon after them, and what all come to.

    Args:
        entries: The ledger's.
        last: How many of the latest to show; 0 for all.
        delta: At which epsilon is stated.
    """
    from medfed.common.ledger import Summary

    start = max(0, len(entries) - last) if last else 0
    spent = Summary.of(entry.spend for entry in entries[:start])
    accounted = _places_to_account(entries, start)
    rows = []
    for place in range(start, len(entries)):
        entry = entries[place]
        spent = spent.plus(entry.spend)
        row = {"index": entry.index, "time": entry.time, **vars(entry.spend)}
        if place in accounted:
            row["epsilon_after"] = for_json(epsilon_of(spent, delta))
        rows.append(row)
    return rows, spent


def _places_to_account(entries: "Sequence[Entry]", start: int) -> set[int]:
    """All of a short list; of a long one, where stretches of alike entries end: it takes time."""
    places = list(range(start, len(entries)))
    if len(places) > _MOST_ACCOUNTS:
        settings = [_setting(entry.spend) for entry in entries[start:]]
        settings.append(())
        places = [p for p in places if settings[p - start] != settings[p - start + 1]]
    return set(places[-_MOST_ACCOUNTS:])


def _setting(spend: "Spend") -> tuple[object, ...]:
    return (spend.run, spend.study, spend.unit, spend.kind, spend.noise_multiplier)


def epsilon_of(spent: "Summary", delta: float) -> float:
    """Return what was spent: infinite if some had no privacy, or if units do not compose."""
    from medfed.common.accounting import epsilon

    if spent.without_privacy or len(spent.units) > 1:
        return math.inf
    return epsilon(spent.events, delta)


def for_json(value: float) -> float | str:
    """Return `value` as JSON can state it: that has no infinity."""
    return value if math.isfinite(value) else "infinite"


def print_ledger(
    config: "SiteConfig", copy: "LedgerCopy", rows: list[dict[str, Any]], spent: "Summary"
) -> None:
    """Print the table of `rows`, and what is left of the budget."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not copy.entries:
        console.print(f"{config.name} has no entry in its ledger: nothing was spent.")
    else:
        left_out = len(copy.entries) - len(rows)
        earlier = f" ({left_out} earlier ones: --last 0)" if left_out else ""
        table = Table(
            title=f"Ledger of {config.name}, {len(copy.entries)} entries{earlier}",
            box=SIMPLE_HEAD,
            padding=(0, 0),
        )
        for head, justify in _COLUMNS.items():
            folds = head in ("Time (UTC)", "Run")
            table.add_column(
                head, justify=justify, overflow="fold", no_wrap=not folds, min_width=10 * folds
            )
        for row in rows:
            table.add_row(*_cells(row))
        console.print(table)
    _print_budget(console.print, config, spent)


def _cells(row: dict[str, Any]) -> list[str]:
    after = row.get("epsilon_after", "")
    return [
        str(row["index"]),
        row["time"][:19].replace("T", " "),
        f"round {row['round_number']}" if row["kind"] == "training" else row["kind"],
        row["run"],
        row["unit"],
        row["noise"] if row["unit"] == "none" else f"{row['noise_multiplier']:g} {row['noise']}",
        f"{row['sample_rate']:g}",
        str(row["steps"]),
        f"{after:.4f}" if isinstance(after, float) else after.replace("infinite", "∞"),
    ]


def _print_budget(say: Any, config: "SiteConfig", spent: "Summary") -> None:
    from medfed.common.accounting import epsilon

    policy = config.policy
    value = epsilon_of(spent, policy.target_delta)
    units = sorted(spent.units - {"none"})
    per = f" per {' and '.join(units)}" if units else ""
    if math.isfinite(value):
        left = f"{max(0.0, policy.max_epsilon - value):.4f} left"
        say(
            f"ε {value:.4f}{per} spent of {policy.max_epsilon:g} at δ {policy.target_delta:g}: "
            f"{left}."
        )
        return
    if len(units) > 1:
        say(f"Spent{per}: no common ε follows. Keep each unit to a data set of its own.")
    elif units:
        private = epsilon(spent.events, policy.target_delta)
        say(
            f"ε ∞: some releases had no privacy. The private ones alone come to ε {private:.4f}"
            f"{per} at δ {policy.target_delta:g}."
        )
    else:
        say("ε ∞: no release had any privacy.")
