"""Segmentation in detail: figures a structure, over all sites and at each, and detection."""

from functools import partial
from typing import TYPE_CHECKING, Any

from medfed.common.metrics import MetricSums
from medfed.simulations.reporting import model_plots
from medfed.simulations.reporting.details.detail import Detail, Plots
from medfed.simulations.reporting.dot_plots import dot_plot, structure_series
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, figure, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL_SITES = "All sites"
# What is shown of each structure at each site.
_AT_SITES = ("dice", "hd95", "surface_dice", "sensitivity", "precision")
_MORE = (("volume_error", "Volume error"),)
_NOTE = (
    "Dice is a mean over images and structures; where a structure is neither there nor found, it "
    "is 1, so a set with many empty masks lifts it: Dice where present leaves those images out. "
    "HD95, the 95th percentile of the distances between outlines, is known only where truth and "
    "prediction both hold the structure. IoU, sensitivity and precision count the pixels of all "
    "images together."
)


def _plots(run: RunData, sums: MetricSums) -> Plots:
    return {
        "structures": (
            "Dice, HD95, surface Dice, sensitivity and precision of each structure at each site.",
            partial(_at_sites, run, sums),
        ),
        "detection": (
            "Images that hold each structure by whether the federated model found any of it.",
            partial(model_plots.two_by_two, sums["detection"], run.study.task.classes, "found"),
        ),
    }


def _at_sites(run: RunData, sums: MetricSums) -> "Figure | None":
    structures = run.study.task.classes
    titles = _titles(run)
    known = {ALL_SITES: run.task.metrics(sums), **_by_site(run)}
    panels = {
        titles[key]: [
            [metrics.get(f"{key}/{name}") for name in structures] for metrics in known.values()
        ]
        for key in _AT_SITES
    }
    series = structure_series(structures)
    return dot_plot(tuple(known), panels, series, bold=ALL_SITES, whole_scale=True)


def _by_site(run: RunData) -> dict[str, Any]:
    arm = run.federated
    found = {site: arm.site_metrics(site) for site in run.site_names} if arm else {}
    return {site: metrics for site, metrics in found.items() if metrics}


def _titles(run: RunData) -> dict[str, str]:
    return {one.key: one.title for one in run.task.figures} | dict(_MORE)


def _values(run: RunData, sums: MetricSums) -> dict[str, Any]:
    tolerance, spacing = run.study.evaluation.surface_tolerance, run.study.data.spacing_mm
    return {
        "structures": structures_table(run, sums),
        "at_sites": _at_sites_table(run),
        "detection": detection_table(run, sums),
        "tolerance": f"{tolerance:g} {'pixels' if spacing is None else 'mm'}",
    }


def structures_table(run: RunData, sums: MetricSums) -> Table:
    """Return the federated model's figures for each structure, all held-out images together."""
    titles = _titles(run)
    del titles["loss"]
    metrics = run.task.metrics(sums)
    rows = tuple(
        (name, *(figure(metrics.get(f"{key}/{name}")) for key in titles))
        for name in run.study.task.classes
    )
    return Table(("Structure", *titles.values()), rows)


def _at_sites_table(run: RunData) -> Table:
    titles = _titles(run)
    rows = tuple(
        (site, name, *(figure(metrics.get(f"{key}/{name}")) for key in _AT_SITES))
        for site, metrics in _by_site(run).items()
        for name in run.study.task.classes
    )
    columns = ("Site", "Structure", *(titles[key] for key in _AT_SITES))
    return Table(columns, rows, text=frozenset({0, 1}))


def detection_table(run: RunData, sums: MetricSums) -> Table:
    """Return how images that hold a structure are told from those that do not."""
    metrics = run.task.metrics(sums)
    rows = []
    for index, name in enumerate(run.study.task.classes):
        (neither, false_alarms), (missed, found) = sums["detection"][index].tolist()
        shares = [metrics.get(f"detection_{key}/{name}") for key in ("sensitivity", "specificity")]
        counts = (found + missed, found, missed, neither + false_alarms, false_alarms)
        rows.append((name, *map(whole, counts), *map(figure, shares)))
    columns = ("Structure", "Images with it", "Found", "Missed", "Images without it",
               "False alarms", "Sensitivity", "Specificity")  # fmt: skip
    return Table(columns, tuple(rows))


DETAIL = Detail(
    note=_NOTE,
    counts="Images that hold each structure, by patient: no patient is on both sides or at two "
    "sites.",
    noun="image",
    plots=_plots,
    values=_values,
)
