"""How sure the figures are: the bootstrap's intervals, and subgroups, as tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import ABSENT, Table, figure, whole, without_absent

if TYPE_CHECKING:
    from medfed.simulations.uncertainty.bootstrap import Interval

_TITLES = {"federated": "Federated", "pooled": "Pooled", "local": "Local only, mean"}
# Runs of earlier versions do not say.
_IN_GAP = {True: "yes", False: "no", None: ABSENT}
# With fewer, percentile intervals are known to be too narrow.
_FEW = 30


def uncertainty_notices(run: RunData) -> tuple[str, ...]:
    """Return what a reader must know of these intervals."""
    count = int(run.uncertainty.get("num_patients", 0))
    if not run.uncertainty or count >= _FEW:
        return ()
    return (
        f"Only {count} patients were held out: with so few, intervals of the bootstrap are too "
        "narrow.",
    )


def intervals_table(run: RunData) -> Table:
    """Return each model's figures with their intervals, then differences to the federated one."""
    figures = run.uncertainty.get("figures") or {}
    shown = [one for one in run.task.figures if one.key in figures]
    rows = [
        (title, *(_interval(figures[one.key]["arms"][arm]) for one in shown))
        for arm, title in _TITLES.items()
        if shown and arm in figures[shown[0].key]["arms"]
    ]
    others = figures[shown[0].key]["differences"] if shown else {}
    rows += [
        (
            f"Federated \u2212 {arm}",
            *(_interval(figures[one.key]["differences"][arm], signed=True) for one in shown),
        )
        for arm in others
    ]
    strong = frozenset(i for i, row in enumerate(rows) if row[0].startswith("Federated \u2212"))
    return Table(("Model", *(one.title for one in shown)), tuple(rows), strong=strong)


def subgroups_table(run: RunData) -> Table:
    """Return the federated model's two figures in each group of each column."""
    own = run.task.figures[:2]
    rows = [
        (
            column,
            group,
            whole(facts["patients"]),
            *(_interval(facts["figures"].get(one.key) or {}) for one in own),
            _IN_GAP[facts.get("in_gap")],
        )
        for column, groups in (run.uncertainty.get("subgroups") or {}).items()
        for group, facts in groups.items()
    ]
    columns = ("Column", "Group", "Patients", *(one.title for one in own), "In the gap")
    return without_absent(Table(columns, tuple(rows), text=frozenset({0, 1})))


def gaps_table(run: RunData) -> Table:
    """Return how far the best group of each column is ahead of the worst one."""
    titles = {one.key: one.title for one in run.task.figures}
    rows = [
        (column, titles[key], gap["best"], gap["worst"], _interval(gap))
        for column, gaps in (run.uncertainty.get("gaps") or {}).items()
        for key, gap in gaps.items()
        if key in titles
    ]
    columns = ("Column", "Figure", "Best group", "Worst group", "Gap")
    return Table(columns, tuple(rows), text=frozenset({0, 1, 2, 3}))


def interval_text(intervals: "Mapping[str, Interval]", key: str) -> str:
    """Return a difference with its interval, a dash where there is none."""
    return _interval(intervals[key].to_dict(), signed=True) if key in intervals else ABSENT


def _interval(table: Mapping[str, Any], *, signed: bool = False) -> str:
    value, low, high = table.get("value"), table.get("low"), table.get("high")
    if value is None:
        return ABSENT
    if low is None or high is None:
        return f"{value:+.3f}" if signed else figure(value)
    if signed:
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
