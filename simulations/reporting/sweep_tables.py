"""The tables of a sweep."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from medfed.simulations.reporting import conduct, results, spending
from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.sweep_data import CellRuns, SweepData
from medfed.simulations.reporting.sweep_statistics import (
    Difference,
    corrected,
    p_text,
    paired_difference,
    summarise,
)
from medfed.simulations.reporting.tables import ABSENT, Table, num_bytes

if TYPE_CHECKING:
    from medfed.common.tasks import Figure


def shown_figures(sweep: SweepData) -> tuple["Figure", ...]:
    """Return the leading figure and the one beside it; none before a run is finished."""
    run = sweep.some_run
    return () if run is None else (results.leading(run), results.beside(run))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return each dotted key's last part, or the whole key where two end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def cells_table(sweep: SweepData) -> Table:
    """Return a row a cell: mean and standard deviation over seeds of every arm's figures."""
    names = _keys(sweep)
    shown = shown_figures(sweep)
    scores = tuple(f"{one.title} {arm}" for one in shown for arm in ARMS)
    worst = tuple(f"{one.title} worst site" for one in shown[:1])
    extras = sweep.extras
    more = (*scores, *worst, *(one.title for one in extras))
    columns = ("Cell", *names.values(), "Seeds", *more, "ε", "Sent", "Updates")
    rows = []
    for cell in sweep.cells:
        figures = [summarise(cell.by_arm(one.key, arm)).text() for one in shown for arm in ARMS]
        figures += [summarise(cell.worst_site(one)).text() for one in shown[:1]]
        figures += [summarise(cell.values(one.of)).text() for one in extras]
        sent = [summarise(of).mean for of in (cell.num_bytes(), cell.update_bytes())]
        rows.append(
            (
                *_beginning(cell, names),
                f"{cell.count} of {len(sweep.seeds)}",
                *figures,
                summarise(cell.epsilon()).text(2),
                *(ABSENT if one is None else num_bytes(round(one)) for one in sent),
            )
        )
    return Table(columns, tuple(rows), text=frozenset(range(len(names) + 1)))


def pairs_table(sweep: SweepData) -> Table:
    """Return a row a cell: the federated model against pooled, local and the first cell."""
    shown = shown_figures(sweep)
    if not shown:
        return Table((), ())
    first, names = shown[0], _keys(sweep)
    against = ["pooled", "local"]
    columns = ["Cell", *names.values()]
    for other in [*against, *(["cell 1"] if len(sweep.cells) > 1 else [])]:
        columns += [f"Federated \u2212 {other}", "p"]
    rows = []
    for number, cell in enumerate(sweep.cells):
        ours = cell.by_arm(first.key, "federated")
        differences = [paired_difference(ours, cell.by_arm(first.key, arm)) for arm in against]
        texts = [text for one in differences for text in (one.text(), p_text(one.p))]
        if len(sweep.cells) > 1:
            base = paired_difference(ours, sweep.cells[0].by_arm(first.key, "federated"))
            texts += [base.text(), p_text(base.p)] if number else [ABSENT, ABSENT]
        rows.append((*_beginning(cell, names), *texts))
    return Table(tuple(columns), tuple(rows), text=frozenset(range(len(names) + 1)))


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
    names = _keys(sweep)
    rows = []
    for cell in sweep.cells:
        found = [one for one in cell.reaching(shown[0], target) if one is not None]
        sent = summarise([float(one.num_bytes) for one in found]).mean
        rows.append(
            (
                *_beginning(cell, names),
                f"{len(found)} of {cell.count}",
                summarise([float(one.rounds) for one in found]).text(1),
                ABSENT if sent is None else num_bytes(round(sent)),
            )
        )
    columns = ("Cell", *names.values(), "Runs that got there", "Rounds", "Sent until then")
    return Table(columns, tuple(rows), text=frozenset(range(len(names) + 1)))


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


def _keys(sweep: SweepData) -> dict[str, str]:
    return short_keys(list(sweep.cells[0].cell.settings))


def _beginning(cell: CellRuns, names: dict[str, str]) -> tuple[str, ...]:
    values = (cell.cell.settings[key] for key in names)
    return (cell.cell.name, *(ABSENT if value is None else str(value) for value in values))
