"""Scarce labels: whose are known, what is done with the others, and what each new label brought."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medfed.client.annotations import ANNOTATIONS_FILE, Visit, read_visits
from medfed.simulations.reporting import results
from medfed.simulations.reporting.arms import FEDERATED, Arm
from medfed.simulations.reporting.drawing import (
    CYCLE,
    FEDERATED_COLOUR,
    HALO,
    label_ends,
    new_figure,
    whole_numbers,
)
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METHODS = {
    "none": "Only labelled images train; the others are not looked at.",
    "pseudo_labels": "Images without labels train too: where the model is sure of its answer to "
    "one view of an image, that answer is the label of another view.",
    "mean_teacher": "Images without labels train too: the model's answers to them are drawn to "
    "those of a running average of itself.",
}
_ACQUISITIONS = {
    "entropy": "those whose images the global model is least sure of (entropy)",
    "margin": "those between whose first two answers the global model wavers most (margin)",
    "random": "any, at random",
}


def is_scarce(run: RunData) -> bool:
    """Whether labels were held back from the sites of a simulation."""
    simulation = run.study.simulation
    return simulation is not None and simulation.labels.scarce


def labels_statement(run: RunData) -> tuple[str, ...]:
    """Say what was done with images without labels, and who labels more of them."""
    if not is_scarce(run) or run.study.simulation is None:
        return ()
    lines = [_METHODS[run.study.semi_supervised.method]]
    annotation = run.study.simulation.annotation
    if annotation is not None:
        rounds = "round" if annotation.every == 1 else f"{annotation.every} rounds"
        lines.append(
            f"After every {rounds} an annotator (simulated) labels {annotation.patients} patients "
            f"of each site: {_ACQUISITIONS[annotation.acquisition]}. Each site chooses by itself; "
            "neither scores nor names leave it."
        )
    return tuple(lines)


def labels_table(run: RunData) -> Table | None:
    """Return how many of each site's training patients have labels, at the start and at the end."""
    if not is_scarce(run):
        return None
    visits = visits_by_site(run)
    tables = run.simulation.get("sites") or {}
    rows = []
    for name in run.site_names:
        hidden = (tables.get(name) or {}).get("unlabelled") or {"patients": 0}
        start, without = run.sites[name].train.patients, int(hidden["patients"])
        revealed = sum(len(visit.patients) for visit in visits.get(name, ()))
        rows.append((name, *map(whole, (start, start + revealed, without - revealed))))
    columns = ("Site", "Patients with labels, at first", "at the end", "without, at the end")
    return Table(columns, tuple(rows))


def visits_by_site(run: RunData) -> Mapping[str, list[Visit]]:
    """Return what each site wrote down of the annotator's visits in the federated arm."""
    sites = run.folder / "arms" / FEDERATED / "sites"
    found = {
        name: read_visits(sites / name / "state" / ANNOTATIONS_FILE, f"{run.run}/{FEDERATED}")
        for name in run.site_names
    }
    return {name: visits for name, visits in found.items() if visits}


def labelled_by_round(run: RunData) -> list[tuple[int, int]]:
    """Return (round, patients with labels at all sites) of the federated arm's rounds."""
    start = sum(facts.train.patients for facts in run.sites.values())
    visits = [visit for own in visits_by_site(run).values() for visit in own]
    rounds = run.federated.rounds if run.federated else ()
    return [
        (number, start + sum(len(v.patients) for v in visits if v.round_number <= number))
        for number in (record.round_number for record in rounds)
    ]


def revealed_table(run: RunData) -> Table | None:
    """Return the labels revealed before each round, and the figure after it."""
    labelled = dict(labelled_by_round(run))
    if not is_scarce(run) or not visits_by_site(run) or run.federated is None:
        return None
    shown, rows, before = results.leading(run), [], None
    scores = _scores(run.federated, shown.key)
    for number, total in labelled.items():
        if total != before:
            last = max(n for n in labelled if labelled[n] == total)
            after = scores.get(last)
            gained = 0 if before is None else total - before
            score = "" if after is None else f"{after:.3f}"
            rows.append((str(number), str(last), whole(gained), whole(total), score))
        before = total
    columns = ("From round", "To round", "Patients labelled before", "Patients with labels",
               f"{shown.title} after")  # fmt: skip
    return Table(columns, tuple(rows))


def plot_labels(run: RunData) -> "Figure | None":
    """Draw patients with labels by round, and the leading figure over them."""
    points = labelled_by_round(run)
    if not is_scarce(run) or not visits_by_site(run) or run.federated is None:
        return None
    shown = results.leading(run)
    figure, (left, right) = new_figure(10, 3.6, 2)
    x, y = zip(*points, strict=True)
    left.step(x, y, where="post", color=FEDERATED_COLOUR)
    left.set(title="Patients with labels, all sites", xlabel="round", ylim=(0, None))
    whole_numbers(left.xaxis)
    scores, labelled = _scores(run.federated, shown.key), dict(points)
    known = [(labelled[number], score) for number, score in scores.items() if number in labelled]
    if not known:
        return None
    x, y = zip(*known, strict=True)
    right.plot(x, y, linestyle="none", marker="o", markersize=4, color=CYCLE[4], **HALO)
    # The last evaluation before more labels came: what that many labels were good for.
    best = dict(known)
    x, y = zip(*sorted(best.items()), strict=True)
    right.plot(x, y, color=FEDERATED_COLOUR, marker="o", markersize=5, **HALO)
    right.set(title=f"{shown.title} over patients with labels", xlabel="patients with labels")
    whole_numbers(right.xaxis)
    label_ends(right, x[-1], [(y[-1], f"{y[-1]:.3f}", FEDERATED_COLOUR)])
    return figure


def _scores(arm: Arm, key: str) -> dict[int, float]:
    return {
        record.round_number: record.metrics[key]
        for record in arm.evaluated
        if record.metrics and key in record.metrics
    }
