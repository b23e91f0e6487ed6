"""Report generation in detail: text figures by arm and site, and what is found, by finding."""

from functools import partial
from typing import TYPE_CHECKING, Any

from medfed.common.metrics import MetricSums
from medfed.simulations.reporting import results
from medfed.simulations.reporting.details.detail import Detail, Plots
from medfed.simulations.reporting.dot_plots import ARM_SERIES, dot_plot
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, figure, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL_SITES = "All sites"
_TEXT = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
}
_FINDINGS = {
    "finding_precision": "Precision",
    "finding_recall": "Recall",
    "finding_f1": "F1",
}
_ALL_FINDINGS = "All findings"
_NOTE = (
    "BLEU, ROUGE-L and METEOR compare the words of what was written with the whole true report, "
    "words outside the vocabulary included: a report that always says the same does well by them. "
    "Findings are read from both texts by the same rules (phrases and negations), so their "
    "precision and recall say whether what is written is right. Unless a public vocabulary was "
    "given, every model has its own, and their losses cannot be compared."
)


def _plots(run: RunData, sums: MetricSums) -> Plots:
    return {
        "text": (
            "BLEU-1 to BLEU-4, ROUGE-L and METEOR of the federated, pooled and local models.",
            partial(_text, run),
        ),
        "findings": (
            "Precision, recall and F1 of each finding for the federated, pooled and local models.",
            partial(_findings, run),
        ),
    }


def _text(run: RunData) -> "Figure | None":
    values = [results.by_arm(run, key) for key in _TEXT]
    panels = {"All sites' held-out reports": values}
    return dot_plot(tuple(_TEXT.values()), panels, ARM_SERIES, whole_scale=True)


def _findings(run: RunData) -> "Figure | None":
    names = run.study.task.label_names
    if not names:
        return None
    panels = {
        title: [
            results.by_arm(run, key),
            *(results.by_arm(run, f"{key}/{name}") for name in names),
        ]
        for key, title in _FINDINGS.items()
    }
    return dot_plot(
        (_ALL_FINDINGS, *names), panels, ARM_SERIES, bold=_ALL_FINDINGS, whole_scale=True
    )


def _values(run: RunData, sums: MetricSums) -> dict[str, Any]:
    written, true = sums["words"].tolist()
    count = int(sums["count"])
    return {
        "text": text_table(run, sums),
        "findings": findings_table(run, sums),
        "written": figure(written / count if count else None, 1),
        "true": figure(true / count if count else None, 1),
    }


def text_table(run: RunData, sums: MetricSums) -> Table:
    """Return the federated model's text figures, over all sites and at each."""
    known = {ALL_SITES: run.task.metrics(sums)}
    if run.federated:
        known |= {site: dict(run.federated.site_metrics(site)) for site in run.site_names}
    rows = tuple(
        (
            site,
            whole(metrics["num_images"]),
            *(figure(metrics.get(key)) for key in (*_TEXT, "length_ratio")),
        )
        for site, metrics in known.items()
        if metrics
    )
    columns = ("Site", "Held-out reports", *_TEXT.values(), "Words written / true")
    return Table(columns, rows, strong=frozenset({0}))


def findings_table(run: RunData, sums: MetricSums) -> Table:
    """Return how right the federated model's findings are, over all held-out reports."""
    metrics = run.task.metrics(sums)
    names = run.study.task.label_names
    rows = []
    for index, name in enumerate(names):
        (_, invented), (missed, right) = sums["findings"][index].tolist()
        shares = [metrics.get(f"{key}/{name}") for key in _FINDINGS]
        counts = (right + missed, right, missed, invented)
        rows.append((name, *map(whole, counts), *map(figure, shares)))
    if names:
        (_, invented), (missed, right) = sums["findings"].sum(axis=0).tolist()
        shares = [metrics.get(key) for key in _FINDINGS]
        counts = (right + missed, right, missed, invented)
        rows.append((_ALL_FINDINGS, *map(whole, counts), *map(figure, shares)))
    columns = ("Finding", "Reports with it", "Found", "Missed", "Invented", *_FINDINGS.values())
    return Table(columns, tuple(rows), strong=frozenset({len(rows) - 1}))


DETAIL = Detail(
    note=_NOTE,
    counts="Reports that mention each finding, by patient: no patient is on both sides or at two "
    "sites.",
    noun="report",
    plots=_plots,
    values=_values,
)
