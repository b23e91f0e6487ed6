"""`compare_runs`: runs side by side, as a page, a CSV file and tables that a terminal can print."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfed.common.errors import RunError
from medfed.common.files import write_atomically
from medfed.common.study import to_plain
from medfed.simulations.reporting import bytes_plot, conduct, results, spending, training_plots
from medfed.simulations.reporting.arms import FEDERATED, POOLED
from medfed.simulations.reporting.drawing import draw
from medfed.simulations.reporting.extras import Extra, extras_of
from medfed.simulations.reporting.figures import metric_curve
from medfed.simulations.reporting.headline import unfinished_arms
from medfed.simulations.reporting.latex import to_latex
from medfed.simulations.reporting.paired import paired_csv, paired_table, paired_tests
from medfed.simulations.reporting.rendering import render
from medfed.simulations.reporting.results import ARMS
from medfed.simulations.reporting.run_data import RunData, load_run
from medfed.simulations.reporting.tables import (
    ABSENT,
    Table,
    figure,
    num_bytes,
    seconds,
    small,
    to_markdown,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

    from medfed.common.tasks import Figure


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: One row a run.
        differing: One row a study key whose value is not the same in all runs, one column a run.
        html: The page that was written.
        csv: The file that was written: `runs` with full precision, then the differing keys.
        paired: One row a further run: its federated model minus the first run's, patient by
            patient; empty where that was not asked for.
    """

    runs: Table
    differing: Table
    html: Path
    csv: Path
    paired: Table

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of `runs`."""
        return self.runs.columns

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Rows of `runs`, one a run."""
        return self.runs.rows


def compare_runs(folders: Sequence[Path], out: Path, *, paired: bool = False) -> Comparison:
    """Write compare.html and compare.csv, .md, .tex into `out`, which is made if need be.

    Args:
        folders: The runs.
        out: Where to.
        paired: Evaluate the models again, and compare them patient by patient: paired.csv, too.

    Raises:
        RunError: Fewer than two runs, one that is no run folder or whose patients cannot be paired
            with the first run's, or `out` cannot be written to.
    """
    if len(folders) < 2:
        raise RunError(
            f"Expected at least two run folders, got {len(folders)}. "
            "Name them all: medfed compare runs/a runs/b"
        )
    runs = [load_run(folder) for folder in folders]
    names = _names(runs)
    differing = _differing(names, runs)
    tests = paired_tests(folders) if paired else ()
    comparison = Comparison(
        _runs_table(names, runs),
        differing,
        out / "compare.html",
        out / "compare.csv",
        paired_table(names, tests, runs[0].task.figures),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(comparison.html, _page(names, runs, comparison).encode())
        write_atomically(comparison.csv, _csv(names, runs, differing).encode())
        kept = {"compare": comparison.runs, "paired": comparison.paired}
        for name, table in kept.items():
            if table:
                write_atomically(out / f"{name}.md", to_markdown(table).encode())
                write_atomically(out / f"{name}.tex", to_latex(table).encode())
        if tests:
            write_atomically(out / "paired.csv", paired_csv(names, tests).encode())
    except OSError as error:
        raise RunError(
            f"The comparison cannot be written to {out} ({error.strerror}). Name another folder."
        ) from None
    return comparison


def _names(runs: Sequence[RunData]) -> tuple[str, ...]:
    """The runs' identifiers; numbered where two are the same."""
    counts, seen = Counter(run.run for run in runs), Counter[str]()
    names = []
    for run in runs:
        seen[run.run] += 1
        names.append(run.run if counts[run.run] == 1 else f"{run.run} ({seen[run.run]})")
    return tuple(names)


def _runs_table(names: Sequence[str], runs: Sequence[RunData]) -> Table:
    shown, extras = _figures(runs), extras_of(runs)
    scores = (f"{one.title} {arm}" for one in shown for arm in ARMS)
    columns = (
        "Run",
        "Data set",
        "Sites",
        "Algorithm",
        "Rounds",
        "Privacy",
        "ε @ δ",
        *scores,
        *(one.title for one in extras),
        "Sent",
        "Updates",
        "Time",
    )
    rows = tuple(_row(name, run, shown, extras) for name, run in zip(names, runs, strict=True))
    return Table(columns, rows, text=frozenset({0, 1, 3, 5}))


def _figures(runs: Sequence[RunData]) -> tuple["Figure", ...]:
    """The two figures that each run shows site by site; runs of several tasks have more."""
    shown = {one.key: one for run in runs for one in (results.leading(run), results.beside(run))}
    return tuple(shown.values())


def _row(
    name: str, run: RunData, shown: Sequence["Figure"], extras: Sequence[Extra]
) -> tuple[str, ...]:
    rounds = run.federated.rounds if run.federated else ()
    return (
        name,
        _dataset(run),
        str(len(run.site_names)),
        run.study.federation.algorithm,
        f"{len(rounds)} of {run.study.training.rounds}",
        *_privacy(run),
        *map(figure, _scores(run, shown)),
        *(figure(one.of(run)) for one in extras),
        num_bytes(conduct.total_bytes(run.federated)),
        num_bytes(conduct.update_bytes(run.federated)),
        seconds(sum(record.seconds for record in rounds)),
    )


def _scores(run: RunData, shown: Sequence["Figure"]) -> list[float | None]:
    return [value for one in shown for value in results.by_arm(run, one.key)]


def _dataset(run: RunData) -> str:
    simulation = run.study.simulation
    known = (run.simulation.get("dataset") or {}).get("name")
    return str(known or (simulation.name or simulation.dataset if simulation else ABSENT))


def _privacy(run: RunData) -> tuple[str, str]:
    """The unit with where noise came from, and epsilon at delta."""
    privacy = run.study.privacy
    masked = ", secure aggregation" if run.study.secure_aggregation.enabled else ""
    if not privacy.enabled:
        return f"none{masked}", ABSENT
    noise = "+".join(sorted(spending.noise_kinds(run)))
    epsilon = figure(spending.stated_epsilon(run), 2)
    unit = f"{privacy.unit}, {noise} noise" if noise else privacy.unit
    return f"{unit}{masked}", f"{epsilon} @ {small(privacy.target_delta)}"


def _differing(names: Sequence[str], runs: Sequence[RunData]) -> Table:
    """Study keys whose values are not all equal; a key that a run lacks shows a dash."""
    flat = [flattened(to_plain(run.shown_study)) for run in runs]
    keys = sorted(set().union(*flat))
    rows = tuple(
        (key, *(values.get(key, ABSENT) for values in flat))
        for key in keys
        if len({values.get(key) for values in flat}) > 1
    )
    # Values are text: descriptions and lists of words must wrap.
    return Table(("Study key", *names), rows, text=frozenset(range(len(names) + 1)))


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested tables as dotted keys with their values as text."""
    values: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            values |= flattened(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = (
                ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            )
    return values


def _page(names: Sequence[str], runs: Sequence[RunData], comparison: Comparison) -> str:
    leading = _titles(_leading(runs))
    plots = {
        "compare": (
            f"{leading} and loss by round, one line a run.",
            partial(_overlay, names, runs),
        ),
        "bytes": (
            f"{leading} over the bytes of updates.",
            partial(bytes_plot.plot_runs, names, runs),
        ),
    }
    drawn = {name: draw(name, text, plot) for name, (text, plot) in plots.items()}
    notices = [
        f"{name}: {line}"
        for name, run in zip(names, runs, strict=True)
        for line in (*unfinished_arms(run), *results.baseline_notes(run))
    ]
    if len({run.study.task.type for run in runs}) > 1:
        notices.append("The runs have different tasks: their figures cannot be compared.")
    elif len({_dataset(run) for run in runs}) > 1:
        notices.append("The runs are on different data sets: their figures cannot be compared.")
    elif len({_test_images(run) for run in runs}) > 1:
        notices.append("The runs are judged on different held-out images: compare with care.")
    return render(
        "compare.html.j2",
        "medfed comparison",
        figures={name: drawing for name, drawing in drawn.items() if drawing is not None},
        leading=leading,
        extras=extras_of(runs),
        table_runs=comparison.runs,
        paired=comparison.paired,
        paired_first=names[0],
        differing=comparison.differing,
        notices=notices,
    )


def _test_images(run: RunData) -> float | None:
    return results.final(run, FEDERATED, "num_images")


def _leading(runs: Sequence[RunData]) -> dict[str, str]:
    """Title of each run's leading figure, by its key."""
    return {one.key: one.title for one in map(results.leading, runs)}


def _titles(titles: Mapping[str, str]) -> str:
    return ", ".join(titles.values())


def _overlay(names: Sequence[str], runs: Sequence[RunData]) -> "Drawn | None":
    panels = {
        title: [
            (
                metric_curve(name, run.federated, key),
                metric_curve(name, run.arms.get(POOLED), key),
            )
            for name, run in zip(names, runs, strict=True)
        ]
        for key, title in {**_leading(runs), "loss": "Loss"}.items()
    }
    return training_plots.overlay(panels)


def _csv(names: Sequence[str], runs: Sequence[RunData], differing: Table) -> str:
    """One line a run, with unrounded figures; differing study keys are further columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown = _figures(runs)
    scores = [f"{one.key}_{arm}" for one in shown for arm in ARMS]
    extras = extras_of(runs)
    writer.writerow(["run", "dataset", "sites", "algorithm", "rounds", "privacy_unit", "epsilon",
                     "target_delta", "noise", *scores, *(one.key for one in extras), "bytes",
                     "update_bytes", "seconds",
                     *(row[0] for row in differing.rows)])  # fmt: skip
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        rounds = run.federated.rounds if run.federated else ()
        privacy = run.study.privacy
        writer.writerow([
            name,
            _dataset(run),
            len(run.site_names),
            run.study.federation.algorithm,
            len(rounds),
            privacy.unit,
            spending.stated_epsilon(run),
            privacy.target_delta if privacy.enabled else None,
            "+".join(sorted(spending.noise_kinds(run))),
            *_scores(run, shown),
            *(one.of(run) for one in extras),
            conduct.total_bytes(run.federated),
            conduct.update_bytes(run.federated),
            sum(record.seconds for record in rounds),
            *("" if row[index + 1] == ABSENT else row[index + 1] for row in differing.rows),
        ])  # fmt: skip
    return text.getvalue()
