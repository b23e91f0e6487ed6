"""The tables of a sweep."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from medfed.simulations.reporting import conduct, results, spending
from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData, Values
from medfed.simulations.reporting.sweep_statistics import (
    Difference,
    corrected,
    p_text,
    paired_difference,
    summarise,
)
from medfed.simulations.reporting.tables import ABSENT, Table, num_bytes, without_absent
from medfed.simulations.sweep import short_keys

if TYPE_CHECKING:
    from medfed.common.tasks import Figure

_MOST_KEYS = 5


def shown_figures(sweep: SweepData) -> tuple["Figure", ...]:
    """Return the leading figure and the one beside it; none before a run is finished."""
    run = sweep.some_run
    return () if run is None else (results.leading(run), results.beside(run))


class _Column(NamedTuple):
    """A column of a table with a row a cell."""

    title: str
    of: Callable[[CellRuns], str]


def cells_table(sweep: SweepData) -> Table:
    """Return a row a cell: mean and standard deviation over seeds of every arm's figures."""
    leading, beside, cost = _cell_columns(sweep)
    return _cells(sweep, [*leading, *beside, *cost])


def cells_tables(sweep: SweepData) -> tuple[Table, Table]:
    """Return the same as two tables that a page has room for: the leading figure, and the rest."""
    leading, beside, cost = _cell_columns(sweep)
    return _cells(sweep, [*leading, *cost]), _cells(sweep, beside)


def _cell_columns(sweep: SweepData) -> tuple[list[_Column], list[_Column], list[_Column]]:
    """Columns of the leading figure, of what is shown beside it, and of what a cell costs."""

    def over(title: str, of: Callable[[CellRuns], Values], digits: int = 3) -> _Column:
        return _Column(title, lambda cell: over_seeds(of(cell), cell, digits))

    def sent(title: str, of: Callable[[CellRuns], Values]) -> _Column:
        def text(cell: CellRuns) -> str:
            mean = summarise(of(cell)).mean
            return ABSENT if mean is None else num_bytes(round(mean))

        return _Column(title, text)

    def arms(shown: "Figure") -> list[_Column]:
        return [
            over(f"{shown.title} {arm}", partial(CellRuns.by_arm, key=shown.key, arm=arm))
            for arm in ARMS
        ]

    shown = shown_figures(sweep)
    leading = [column for one in shown[:1] for column in arms(one)]
    leading += [
        over(f"{one.title} worst site", partial(CellRuns.worst_site, shown=one))
        for one in shown[:1]
    ]
    beside = [column for one in shown[1:] for column in arms(one)]
    beside += [over(one.title, partial(CellRuns.values, of=one.of)) for one in sweep.extras]
    cost = [over("\u03b5", CellRuns.epsilon, 2), sent("Sent", CellRuns.num_bytes)]
    return leading, beside, [*cost, sent("Updates", CellRuns.update_bytes)]


def _cells(sweep: SweepData, columns: Sequence[_Column]) -> Table:
    """Return a row a cell; columns in which no cell has anything are left out."""
    columns_of_cell, beginning = cell_columns(sweep)
    rows = tuple(
        (
            *beginning(cell),
            f"{cell.count} of {len(sweep.seeds)}",
            *(column.of(cell) for column in columns),
        )
        for cell in sweep.cells
    )
    titles = (*columns_of_cell, "Seeds", *(column.title for column in columns))
    return without_absent(Table(titles, rows, text=frozenset(range(len(columns_of_cell)))))


def over_seeds(values: Values, cell: CellRuns, digits: int = 3) -> str:
    """Mean and standard deviation; where not every finished run has a value, how many have."""
    summary = summarise(values)
    some = summary.mean is not None and summary.count < cell.count
    return summary.text(digits) + (f" ({summary.count} of {cell.count})" if some else "")


def pairs_table(sweep: SweepData) -> Table:
    """Return a row a cell: the federated model against pooled, local and the first cell.

    With three cells or more the last column has p corrected for the comparisons with the first.
    """
    shown = shown_figures(sweep)
    if not shown:
        return Table((), ())
    key, first = shown[0].key, sweep.cells[0]
    titles, beginning = cell_columns(sweep)

    def against(cell: CellRuns, other: CellRuns, arm: str) -> Difference:
        return paired_difference(cell.by_arm(key, "federated"), other.by_arm(key, arm))

    columns = list(titles)
    rows = [beginning(cell) for cell in sweep.cells]
    for arm in ARMS[1:]:
        columns += [f"Federated \u2212 {arm}", "p"]
        found = [against(cell, cell, arm) for cell in sweep.cells]
        rows = [(*row, *_tested(one)) for row, one in zip(rows, found, strict=True)]
    if len(sweep.cells) > 1:
        columns += ["Federated \u2212 cell 1", "p"]
        found = [against(cell, first, "federated") for cell in sweep.cells[1:]]
        texts = [(ABSENT, ABSENT), *map(_tested, found)]
        rows = [(*row, *text) for row, text in zip(rows, texts, strict=True)]
    if len(sweep.cells) > 2:
        columns.append("p, Holm")
        holm = (None, *corrected([one.p for one in found]))
        rows = [(*row, p_text(p)) for row, p in zip(rows, holm, strict=True)]
    return without_absent(Table(tuple(columns), tuple(rows), text=frozenset(range(len(titles)))))


def _tested(one: Difference) -> tuple[str, str]:
    return one.text(), p_text(one.p)


class Effect(NamedTuple):
    """What one change does to the federated model's leading figure.

    Attributes:
        cell: With the change.
        base: The cell that is as cell 1 in what changed, and as `cell` in all else.
        changed: The keys that changed: one of vary, or those of a case.
        difference: Paired by seed.
    """

    cell: CellRuns
    base: CellRuns
    changed: tuple[str, ...]
    difference: Difference


def effects(sweep: SweepData) -> tuple[Effect, ...]:
    """Return what every single change does; empty where only one thing varies.

    There the comparison with cell 1 says it.
    """
    section, shown = sweep.study.sweep, shown_figures(sweep)
    assert section is not None
    keys = sweep.cells[0].cell.settings
    factors = [tuple(key for key in keys if key in section.case_keys)]
    factors += [(key,) for key in keys if key in section.vary and len(section.vary[key]) > 1]
    factors = [factor for factor in factors if factor]
    if len(factors) < 2 or not shown:
        return ()
    return tuple(_effects(sweep, factors, shown[0]))


def _effects(
    sweep: SweepData, factors: Sequence[tuple[str, ...]], shown: "Figure"
) -> Iterator[Effect]:
    by_settings = {tuple(cell.cell.settings.items()): cell for cell in sweep.cells}
    first = sweep.cells[0].cell.settings
    for factor in factors:
        for cell in sweep.cells:
            settings = {**cell.cell.settings, **{key: first[key] for key in factor}}
            base = by_settings.get(tuple(settings.items()))
            if base is not None and base is not cell:
                values = [one.by_arm(shown.key, "federated") for one in (cell, base)]
                yield Effect(cell, base, factor, paired_difference(*values))


def effects_table(sweep: SweepData) -> Table:
    """Return a row a change: what changed, beside what, and what that does."""
    found, shown = effects(sweep), shown_figures(sweep)
    if not found:
        return Table((), ())
    names = _keys(sweep)

    def settings(cell: CellRuns, keys: Sequence[str]) -> str:
        values = {names[key]: cell.cell.settings[key] for key in keys}
        return ", ".join(f"{name} {v}" for name, v in values.items() if v is not None) or ABSENT

    rows = []
    holm = corrected([effect.difference.p for effect in found])
    for (cell, base, changed, difference), p in zip(found, holm, strict=True):
        rest = [key for key in names if key not in changed]
        rows.append(
            (
                f"{cell.cell.name} \u2212 {base.cell.name}",
                settings(cell, changed),
                settings(base, changed),
                settings(cell, rest),
                difference.text(),
                p_text(difference.p),
                p_text(p),
            )
        )
    columns = ("Cells", "With", "Against", "All else", f"{shown[0].title} difference", "p",
               "p, Holm")  # fmt: skip
    return Table(columns, tuple(rows), text=frozenset({0, 1, 2, 3}))


def target_table(sweep: SweepData) -> Table:
    """Return a row a cell: rounds and bytes until the federated model was as good as asked.

    Means are over the runs that got there; a cell that seldom does is not better for that.
    """
    target = sweep.study.sweep.target if sweep.study.sweep else None
    shown = shown_figures(sweep)
    if target is None or not shown:
        return Table((), ())
    titles, beginning = cell_columns(sweep)
    rows = []
    for cell in sweep.cells:
        found = [one for one in cell.reaching(shown[0], target) if one is not None]
        sent = summarise([float(one.num_bytes) for one in found]).mean
        rows.append(
            (
                *beginning(cell),
                f"{len(found)} of {cell.count}",
                summarise([float(one.rounds) for one in found]).text(1),
                ABSENT if sent is None else num_bytes(round(sent)),
            )
        )
    columns = (*titles, "Runs that got there", "Rounds", "Sent until then")
    return Table(columns, tuple(rows), text=frozenset(range(len(titles))))


def runs_csv(sweep: SweepData) -> str:
    """Return one line a finished run, with unrounded figures."""
    keys = list(sweep.cells[0].cell.settings)
    shown = shown_figures(sweep)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [f"{one.key}_{arm}" for one in shown for arm in ARMS]
    worst = [f"{one.key}_worst_site" for one in shown]
    extras = sweep.extras
    more = [*scores, *worst, *(one.key for one in extras)]
    writer.writerow(["cell", "seed", "run", *keys, *more, "epsilon", "bytes", "update_bytes"])
    for cell in sweep.cells:
        for index, (seed, run) in enumerate(zip(sweep.seeds, cell.runs, strict=True)):
            if run is None:
                continue
            row: list[Any] = [value for one in shown for value in results.by_arm(run, one.key)]
            row += [cell.worst_site(one)[index] for one in shown]
            row += [one.of(run) for one in extras]
            row += [spending.stated_epsilon(run), conduct.total_bytes(run.federated)]
            row.append(conduct.update_bytes(run.federated))
            settings = [cell.cell.settings[key] for key in keys]
            writer.writerow([cell.cell.name, seed, run.folder.name, *settings, *row])
    return text.getvalue()


def cell_columns(sweep: SweepData) -> tuple[tuple[str, ...], Callable[[CellRuns], tuple[str, ...]]]:
    """Return the headings of what tells a cell from the others, and a cell's entries there.

    That is a column a key; where keys are many, as those of cases may be, one for all.
    """
    names = _keys(sweep)
    if len(names) > _MOST_KEYS:
        return ("Cell", "Settings"), lambda cell: (cell.cell.name, cell.cell.label)
    return ("Cell", *names.values()), lambda cell: _beginning(cell, names)


def _keys(sweep: SweepData) -> dict[str, str]:
    return short_keys(list(sweep.cells[0].cell.settings))


def _beginning(cell: CellRuns, names: dict[str, str]) -> tuple[str, ...]:
    values = (cell.cell.settings[key] for key in names)
    return (cell.cell.name, *(ABSENT if value is None else str(value) for value in values))
