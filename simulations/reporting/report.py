"""`write_report`: the run folder as one page to read and figures to keep."""

from pathlib import Path
from typing import Any

from medfed.common.errors import RunError
from medfed.common.files import write_atomically
from medfed.common.study_file import study_to_toml
from medfed.simulations.reporting import (
    cards,
    conduct,
    deployed,
    failures,
    personal,
    privacy,
    results,
    scarce,
    spending,
)
from medfed.simulations.reporting.beside import Drawings
from medfed.simulations.reporting.details import detail_of, template_of
from medfed.simulations.reporting.details.words import vocabulary_statement, vocabulary_table
from medfed.simulations.reporting.drawing import Drawing
from medfed.simulations.reporting.figures import draw_figures
from medfed.simulations.reporting.headline import headline
from medfed.simulations.reporting.heads import heads_introduction, heads_table
from medfed.simulations.reporting.history import history_table
from medfed.simulations.reporting.kept_tables import kept_tables, write_tables
from medfed.simulations.reporting.matrix import matrix_csv, matrix_table
from medfed.simulations.reporting.model_facts import model_rows, published
from medfed.simulations.reporting.order import order_line, order_table
from medfed.simulations.reporting.partition_words import partition_in_words
from medfed.simulations.reporting.rendering import render
from medfed.simulations.reporting.run_data import RunData, load_run
from medfed.simulations.reporting.tables import Table, to_markdown, whole
from medfed.simulations.reporting.uncertainty import (
    gaps_table,
    intervals_table,
    subgroups_table,
    uncertainty_notices,
)

_SECTIONS = (
    ("happened", "What happened"),
    ("convergence", "Convergence"),
    ("comparison", "Federated, pooled, local"),
    ("uncertainty", "How sure"),
    ("sites", "Sites"),
    ("labels", "Labels"),
    ("failures", "Failures"),
    ("model", "Model"),
    ("vocabulary", "Vocabulary"),
    ("cards", "Data cards"),
    ("examples", "Examples"),
    ("privacy", "Privacy"),
    ("data", "Data"),
    ("traffic", "Bytes"),
    ("time", "Time"),
    ("participation", "Participation"),
    ("unseen", "What is not here"),
    ("reproduction", "Reproduction"),
)

REPORT_FILE = "report.html"


def write_report(run_folder: Path) -> Path:
    """Write `report.html`, `figures/*.svg` and `figures/*.png` into the run folder.

    With them `tables/`: `figures.csv` unrounded, the page's tables as Markdown and LaTeX.
    With local arms also `matrix.csv` and `matrix.md`: every site's model at every site. With
    personal models `personal.csv` and `personal.md`: each site's beside the global one.

    The page opens offline: styles, figures and images are inside it. The same run folder gives the
    same bytes.

    Args:
        run_folder: A run's folder.

    Returns:
        Path of report.html.

    Raises:
        RunError: Not a run folder, a damaged file, or a folder that cannot be written to.
    """
    return report_of(load_run(run_folder))


def report_of(run: RunData, drawings: Drawings | None = None) -> Path:
    """Write the report of a run that was loaded, drawn or not yet; see `write_report`."""
    run_folder = run.folder
    drawings = draw_figures(run) if drawings is None else drawings
    figures = {name: drawing for name, drawing in drawings.items() if drawing is not None}
    page = render("report.html.j2", f"{run.study.study.name} · medfed", **_values(run, figures))
    path = run_folder / REPORT_FILE
    try:
        write_figures(run_folder / "figures", figures)
        write_tables(run_folder / "tables", kept_tables(run))
        if matrix := matrix_table(run):
            write_atomically(run_folder / "matrix.csv", matrix_csv(run).encode())
            write_atomically(run_folder / "matrix.md", to_markdown(matrix).encode())
        if own := personal.personal_table(run):
            write_atomically(run_folder / "personal.csv", personal.personal_csv(run).encode())
            write_atomically(run_folder / "personal.md", to_markdown(own).encode())
        write_atomically(path, page.encode())
    except OSError as error:
        raise RunError(
            f"The report cannot be written to {run_folder} ({error.strerror}). "
            "Make room, or copy the run folder to where you may write."
        ) from None
    return path


def write_figures(folder: Path, figures: dict[str, Drawing]) -> None:
    """Write each figure as SVG and PNG; figures that a run no longer has are taken away."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if path.stem not in figures:
            path.unlink()
    for name, drawing in figures.items():
        (folder / f"{name}.svg").write_bytes(drawing.svg)
        (folder / f"{name}.png").write_bytes(drawing.png)


def _values(run: RunData, figures: dict[str, Drawing]) -> dict[str, Any]:
    """Everything the template shows."""
    return {
        "run": run,
        "task": template_of(run),
        "figures": figures,
        "sections": _sections(run),
        "headline": headline(run),
        **_quality(run),
        "model": model_rows(run),
        "examples": run.examples,
        **_cards(run),
        "labels_statement": scarce.labels_statement(run),
        "labels": scarce.labels_table(run),
        "revealed": scarce.revealed_table(run),
        "failures": failures.failures_statement(run),
        "attacks": failures.attacks_table(run),
        **_privacy(run),
        "dataset": _dataset(run),
        "licence": (run.simulation.get("dataset") or {}).get("licence"),
        "quarantine": conduct.quarantine_line(run),
        "partition": conduct.partition_table(run),
        "left_out": sorted((run.simulation.get("left_out") or {}).items()),
        "traffic": conduct.traffic_table(run),
        "times": conduct.time_table(run),
        "participation": conduct.participation_table(run),
        "order": order_table(run),
        "order_line": order_line(run),
        "captions": deployed.captions(run),
        **(_deployed(run) if run.deployed else {}),
        "reproduction": conduct.reproduction_rows(run),
        "study_toml": study_to_toml(run.shown_study),
    }


def _deployed(run: RunData) -> dict[str, Any]:
    """What only a coordinator's page has: the sites were not of its own making."""
    arm = run.federated
    heads = arm.heads if arm else None
    answers = deployed.statuses(arm)
    rows = tuple((site, deployed.by_round(by_round)) for site, by_round in answers.items())
    return {
        "happened": history_table(arm.happened if arm else ()),
        "unseen": deployed.cannot_see(run),
        "by_round": Table(("Site", "Round by round"), rows, text=frozenset({0, 1})),
        "heads": heads_table(heads),
        "heads_introduction": heads_introduction(heads),
    }


def _privacy(run: RunData) -> dict[str, Any]:
    """What was protected, what that cost, and whether the ledgers say the same."""
    server = run.federated.server_ledger if run.federated else None
    return {
        "privacy": privacy.privacy_statement(run),
        "privacy_facts": privacy.privacy_facts(run),
        "budget": spending.budget(run),
        "epsilon": spending.epsilon_table(run),
        "ledger_introduction": privacy.ledger_introduction(run),
        "ledgers": spending.ledger_table(run),
        "server_ledger_missing": run.study.privacy.unit == "site" and server is None,
        "other_ledgers": spending.other_ledgers(run),
    }


def _cards(run: RunData) -> dict[str, Any]:
    """What the sites said of their data, if the study asks."""
    if not run.study.statistics.collect:
        return {"card_statement": (), "card_table": None, "cards": ()}
    facts = run.federated.cards if run.federated else None
    found, names = (facts.cards if facts else {}), cards.names_of(facts)
    return {
        "card_statement": cards.cards_statement(facts, run.study),
        "card_table": cards.cards_table(found, run.study, names),
        "cards": tuple(
            (name, rows) for name in names if (rows := cards.card_rows(found[name], run.study))
        ),
    }


def _sections(run: RunData) -> list[tuple[str, str]]:
    absent = deployed.WITHOUT if run.deployed else deployed.ONLY
    if run.study.task.type != "report":
        absent |= {"vocabulary"}
    if not run.study.statistics.collect:
        absent |= {"cards"}
    if not run.uncertainty:
        absent |= {"uncertainty"}
    if not scarce.is_scarce(run):
        absent |= {"labels"}
    if failures.failures_of(run) is None:
        absent |= {"failures"}
    return [section for section in _SECTIONS if section[0] not in absent]


def _quality(run: RunData) -> dict[str, Any]:
    """How good the models are, and what only this run's task has to show of it."""
    sums, detail = results.federated_sums(run), detail_of(run)
    return {
        "leading": results.leading(run).title,
        "arms": results.arms_table(run),
        "comparison": results.comparison_table(run),
        "intervals": intervals_table(run),
        "subgroups": subgroups_table(run),
        "gaps": gaps_table(run),
        "uncertainty_notices": uncertainty_notices(run),
        "resamples": whole(run.uncertainty.get("resamples")),
        "bootstrapped": whole(run.uncertainty.get("num_patients")),
        "sites": deployed.sites_table(run) if run.deployed else results.sites_table(run),
        "personal": personal.personal_table(run),
        "personal_lines": personal.personal_lines(run),
        "matrix": matrix_table(run),
        "note": detail.note,
        "baseline_notes": results.baseline_notes(run),
        "withholding": results.withholding_sites(run),
        "published": published(run.study),
        "counts": detail.counts,
        "detail": None if sums is None else detail.values(run, sums),
        "vocabulary": vocabulary_statement(run),
        "words": run.federated.vocabulary.words
        if run.federated and run.federated.vocabulary
        else (),
        "named": vocabulary_table(run),
    }


def _dataset(run: RunData) -> list[tuple[str, str]]:
    """The data set and the partition in words, as far as they are known."""
    facts = run.simulation.get("dataset") or {}
    partition = run.simulation.get("partition") or {}
    counts = {"Images": "num_images", "Patients": "num_patients"}
    rows = [
        ("Data set", facts.get("name")),
        *((label, whole(facts[key]) if key in facts else None) for label, key in counts.items()),
        ("Licence", facts.get("licence")),
        ("Citation", facts.get("citation")),
        ("Partition", partition_in_words(partition)),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "")]
