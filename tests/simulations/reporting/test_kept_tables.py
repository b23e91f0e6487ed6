"""The tables that lie beside a report: the page's own, and the records' figures unrounded."""

import csv
from collections.abc import Callable
from pathlib import Path

from medfed.common.files import write_json
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.results import local_mean
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.tables import ABSENT, Table, without_absent

_INTERVAL = {"value": 0.81, "low": 0.7, "high": 0.9}
_GROUP = {"patients": 20, "figures": {"auroc": _INTERVAL}}
UNCERTAINTY = {
    "resamples": 50,
    "level": 0.95,
    "num_patients": 40,
    "figures": {"auroc": {"arms": {"federated": _INTERVAL}, "differences": {}}},
    "subgroups": {"sex": {"f": _GROUP, "m": _GROUP}},
    "gaps": {"sex": {"auroc": {"best": "f", "worst": "m", "value": 0.1, "low": -0.1, "high": 0.3}}},
}


def lines_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_figure_of_the_records_is_there_unrounded(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    write_json(folder / "uncertainty.json", UNCERTAINTY)
    write_report(folder)
    rows = lines_of(folder / "tables" / "figures.csv")
    found = {(row["model"], row["held_out_images_of"], row["figure"]): row for row in rows}
    assert len(found) == len(rows)
    run = load_run(folder)
    keys = {figure.key for figure in run.task.figures}
    for arm in ("federated", "pooled", "local-site-1", "local-site-2"):
        last = ArmFolder(folder / "arms" / arm).read_rounds()[-1]
        model = f"{arm.removeprefix('local-')} alone" if arm.startswith("local-") else arm
        places = {"all sites": last.metrics or {}}
        places |= {site: facts.metrics or {} for site, facts in last.sites.items()}
        for place, figures in places.items():
            for key in keys & set(figures):
                assert float(found[model, place, key]["value"]) == figures[key]
    mean = found["local mean", "all sites", "auroc"]
    assert float(mean["value"]) == local_mean(run, "auroc")
    federated = found["federated", "all sites", "auroc"]
    assert (federated["low"], federated["high"]) == ("0.7", "0.9")
    assert (mean["low"], found["federated", "site-1", "auroc"]["low"]) == ("", "")

    groups = lines_of(folder / "tables" / "subgroups.csv")
    assert [(row["group"], row["patients"], row["low"]) for row in groups] == [
        ("f", "20", "0.7"), ("m", "20", "0.7"),
    ]  # fmt: skip


def test_the_page_s_tables_are_kept_and_old_ones_go(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    write_json(folder / "uncertainty.json", UNCERTAINTY)
    page = write_report(folder).read_text()
    assert "The gap is the best group's figure minus the worst's" in page
    kept = {path.name for path in (folder / "tables").iterdir()}
    tables = ("comparison", "intervals", "sites", "subgroups", "gaps", "matrix")
    assert kept == {f"{name}.{kind}" for name in tables for kind in ("md", "tex")} | {
        "figures.csv", "subgroups.csv",
    }  # fmt: skip
    text = (folder / "tables" / "gaps.tex").read_text()
    assert r"sex & AUROC & f & m & 0.100 ($-$0.100 to 0.300) \\" in text
    for file in (folder / "tables").glob("*.tex"):
        assert file.read_text().isascii(), file.name

    (folder / "uncertainty.json").unlink()
    write_report(folder)
    kept = {path.name for path in (folder / "tables").iterdir()}
    assert "gaps.md" not in kept
    assert "subgroups.csv" not in kept
    assert "comparison.tex" in kept


def test_models_that_were_not_trained_have_no_columns(make_run: Callable[..., Path]) -> None:
    folder = make_run(arms=("federated",))
    write_report(folder)
    head, *_ = (folder / "tables" / "sites.md").read_text().splitlines()
    assert "AUROC federated" in head
    assert not any(word in head for word in ("pooled", "own data"))

    table = Table(
        ("who", "a", "b", "c"),
        (("x", "1", ABSENT, ABSENT), ("y", ABSENT, ABSENT, "2")),
        strong=frozenset({1}),
        text=frozenset({0, 3}),
    )
    shown = without_absent(table)
    assert shown.columns == ("who", "a", "c")
    assert shown.rows == (("x", "1", ABSENT), ("y", ABSENT, "2"))
    assert (shown.strong, shown.text) == ({1}, {0, 2})
