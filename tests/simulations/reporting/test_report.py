import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medfed.common.files import write_json
from medfed.common.ledger import Ledger
from medfed.common.study.semi_supervised import SemiSupervisedSection
from medfed.server.records import ArmFolder, RunPlan
from medfed.simulations.reporting.headline import headline
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import RunData, load_run

MakeRun = Callable[..., Path]
GUESSING = SemiSupervisedSection(method="mean_teacher")
SECTIONS = [
    "convergence",
    "comparison",
    "sites",
    "model",
    "examples",
    "privacy",
    "data",
    "traffic",
    "time",
    "participation",
    "reproduction",
]
FIGURES = {
    "convergence",
    "sites",
    "matrix",
    "epsilon",
    "traffic",
    "times",
    "partition",
    "roc",
    "confusion",
    "calibration",
}


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_guessed_labels_that_no_image_needs_are_a_notice(make_run: MakeRun) -> None:
    run = load_run(make_run())
    guessing = replace(
        run,
        study=run.study.model_copy(update={"semi_supervised": GUESSING}),
        simulation=without(0, run),
    )
    (notice,) = set(headline(guessing).notices) - set(headline(run).notices)
    assert "nothing was guessed" in notice
    for other in (run, replace(guessing, simulation=without(3, run))):
        assert not any("guessed" in line for line in headline(other).notices)


def without(patients: int, run: RunData) -> dict[str, Any]:
    """The run's facts, where so many patients of each site have no label."""
    hidden = {"unlabelled": {"patients": patients, "images": patients}}
    sites = {name: {**facts, **hidden} for name, facts in run.simulation["sites"].items()}
    return {**run.simulation, "sites": sites}


def test_report_has_every_section_and_figure(finished_run: Path, read_page: Any) -> None:
    run = finished_run
    page = read_page(run / "report.html")
    assert page.headings == SECTIONS
    inside = {v["id"] for t, v in page.tags if t == "figure"}
    assert inside == {f"figure-{name}" for name in FIGURES}
    assert all(v.get("aria-label") for _, v in page.tags if v.get("role") == "img")
    assert all(v.get("alt") for t, v in page.tags if t == "img")
    assert sum(t == "img" for t, _ in page.tags) == 8
    written = {p.name for p in (run / "figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    for name in FIGURES:
        ET.fromstring((run / "figures" / f"{name}.svg").read_bytes())


def test_report_shows_the_figures_of_the_records(finished_run: Path, read_page: Any) -> None:
    run = finished_run
    page = read_page(run / "report.html")
    last = {arm.name: ArmFolder(arm).read_rounds()[-1] for arm in sorted((run / "arms").iterdir())}
    federated = last["federated"]
    assert federated.metrics is not None
    for arm, title in (("federated", "Federated"), ("local-site-2", "Only site-2")):
        metrics = last[arm].metrics
        assert metrics is not None
        row = page.row("comparison", title)
        keys = ("auroc", "average_precision", "balanced_accuracy", "accuracy", "loss")
        assert row[1:6] == [f"{metrics[key]:.3f}" for key in keys]
    locals_ = [r.metrics["auroc"] for a, r in last.items() if a.startswith("local-") and r.metrics]
    assert page.row("comparison", "Local only, mean of 3")[1] == f"{sum(locals_) / 3:.3f}"
    own = [last[f"local-site-{i}"].sites[f"site-{i}"].metrics for i in (1, 2, 3)]
    own_mean = sum(m["auroc"] for m in own if m) / 3
    assert page.row("comparison", "Local only, mean of 3")[-2] == f"{own_mean:.3f}"
    areas = {name: (site.metrics or {})["auroc"] for name, site in federated.sites.items()}
    worst = min(areas, key=lambda name: areas[name])
    assert page.row("sites", f"{worst} (worst)")[2] == f"{areas[worst]:.3f}"
    epsilon = federated.sites["site-1"].epsilon
    assert epsilon is not None
    assert page.row("privacy", "3")[1] == f"{epsilon:.4f}"
    assert page.row("privacy", "site-1")[3:] == [f"{epsilon:.4f}", f"{epsilon:.4f}", "agrees"]
    assert f"highest ε over the sites is {epsilon:.2f} at δ = 1e-5" in page.text
    # 3 rounds of 251 kB down; site-3 refused the last and sent 0.9 kB instead of 250 kB.
    assert page.row("traffic", "site-1")[1:] == ["753 kB", "750 kB", "1.50 MB", "501 kB"]
    assert page.row("traffic", "site-3")[2] == "501 kB"
    assert page.row("traffic", "All sites")[1:3] == ["2.26 MB", "2.00 MB"]
    assert page.row("participation", "site-3") == [
        *("site-3", "2", "1", "0", "0", "0", "0"),
        "round 3: refused (budget)",
    ]
    assert federated.weights_sha256 in page.text
    assert "medfed simulate studies/phantom.toml --workers 2" in page.text
    assert "scanner-9" in page.text
    assert "natural (column = scanner)" in page.text
    assert "Quarantined: 2 images could not be used (not an image: 2)" in page.text


def test_report_loads_nothing_from_outside(finished_run: Path, read_page: Any) -> None:
    path = finished_run / "report.html"
    page = read_page(path)
    assert page.links
    assert [v for v in page.links if not v.startswith(("#", "data:image/png;base64,"))] == []
    assert not [t for t, _ in page.tags if t in ("script", "link", "iframe", "object", "base")]
    text = path.read_text(encoding="utf-8")
    assert "@import" not in text
    assert [m for m in re.findall(r"url\(([^)]*)\)", text) if not m.startswith("#")] == []
    ids = [v["id"] for _, v in page.tags if "id" in v]
    assert len(ids) == len(set(ids))
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(ids)


def test_report_escapes_names_that_come_from_files(make_run: MakeRun, read_page: Any) -> None:
    classes = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "_$x^$ --> ]]>",
        "胸水",
    )
    reason = "<iframe src='http://evil.example/'></iframe>"
    run = make_run(classes=classes, reason=reason)
    page = read_page(write_report(run))
    assert not [t for t, _ in page.tags if t in ("script", "iframe")]
    assert not [v for _, v in page.tags if "onerror" in v]
    for name in classes:
        assert name in [row[0] for row in page.rows["model"] if row]
    assert f"round 3: refused ({reason})" in page.text
    for svg in (run / "figures").glob("*.svg"):
        ET.fromstring(svg.read_bytes())


def test_report_keeps_local_paths_to_itself(finished_run: Path) -> None:
    run = finished_run
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "/home/somebody/secret" in (run / "simulation.json").read_text()
    assert "somebody" not in text
    assert str(run) not in text


def test_report_is_the_same_bytes_again_and_changes_nothing_else(make_run: MakeRun) -> None:
    run = make_run()
    before = _files(run)
    assert write_report(run) == run / "report.html"
    once = _files(run)
    write_report(run)
    assert _files(run) == once
    added = {name for name in once if name not in before}
    beside = {"report.html", "matrix.csv", "matrix.md"}
    assert all(name in beside or name.startswith(("figures/", "tables/")) for name in added)
    assert {name: once[name] for name in before} == before


def test_report_does_not_depend_on_where_the_run_lies(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    here = write_report(run).read_bytes()
    moved = run.rename(tmp_path / "elsewhere")
    assert write_report(moved).read_bytes() == here


def test_report_says_which_arms_are_missing(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(arms=("federated", "local-site-2"))
    ArmFolder(run / "arms" / "pooled").write_plan(RunPlan(run="run-a/pooled", arm="pooled"))
    page = read_page(write_report(run))
    assert "Not started: Pooled, Only site-1, Only site-3." in page.text
    assert page.row("convergence", "Pooled")[1] == "not started"
    assert [row[0] for row in page.rows["comparison"][1:]] == [
        *("Federated", "Local only, mean of 1", "Only site-2")
    ]


def test_report_says_how_far_an_unfinished_run_got(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(finished=False)
    rounds = run / "arms" / "federated" / "rounds.jsonl"
    rounds.write_text(rounds.read_text() + '{"round_number": 3, "sta')  # torn by a power cut
    page = read_page(write_report(run))
    assert page.row("convergence", "Federated")[1] == "unfinished, 2 of 3 rounds"
    assert "This run is not complete" in page.text
    assert page.headings == SECTIONS


def test_report_says_why_an_arm_failed(make_run: MakeRun, read_page: Any) -> None:
    run = make_run()
    ArmFolder(run / "arms" / "pooled").write_outcome("failed", "out of memory")
    page = read_page(write_report(run))
    assert "Pooled: failed after 3 of 3 rounds: out of memory." in page.text


def test_report_of_a_run_that_only_started(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(arms=())
    for name in ("environment.json", "simulation.json"):
        (run / name).unlink()
    page = read_page(write_report(run))
    assert page.headings == SECTIONS
    assert "No round was completed." in page.text
    assert "simulation.json is missing" in page.text
    assert list((run / "figures").iterdir()) == []


def test_report_without_privacy_says_so(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(private=False)
    page = read_page(write_report(run))
    assert "No privacy: updates were sent without differential privacy." in page.text
    assert "epsilon.svg" not in {p.name for p in (run / "figures").iterdir()}


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ("seeded", "this simulation is not private itself"),
        ("secure", "Noise was secure"),
        ("none", "Some updates were sent without noise"),
    ],
)
def test_report_says_where_noise_came_from(
    make_run: MakeRun, read_page: Any, noise: str, expected: str
) -> None:
    run = make_run(arms=("federated",))
    arm = ArmFolder(run / "arms" / "federated")
    records = arm.read_rounds()
    for record in records:
        for site in record.sites.values():
            site.noise = noise if site.status == "ok" else site.noise
    arm.rewrite_rounds(records)
    page = read_page(write_report(run))
    assert expected in page.text
    others = {"not private itself", "Noise was secure", "without noise"} - {expected}
    assert not [text for text in others if text in page.text and text not in expected]


def test_report_takes_away_figures_that_a_run_no_longer_has(make_run: MakeRun) -> None:
    run = make_run(arms=("federated",))
    write_report(run)
    (run / "arms" / "federated" / "final_sums.json").unlink()
    write_report(run)
    assert not (run / "figures" / "roc.svg").exists()
    assert (run / "figures" / "convergence.svg").exists()


def test_report_says_when_a_ledger_was_changed(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(arms=("federated",))
    sites = run / "arms" / "federated" / "sites"
    forged = sites / "site-1" / "state" / "ledger.jsonl"
    forged.write_text(forged.read_text().replace('"steps": 4', '"steps": 1'))
    shortened = sites / "site-2" / "state" / "ledger.jsonl"
    shortened.write_text("".join(shortened.read_text().splitlines(keepends=True)[:2]))
    (shortened.parent / "ledger.seal").unlink()  # it would tell that entries are gone
    with Ledger(sites / "site-3" / "state").locked() as ledger:
        ledger.append(ledger.entries[0].spend)
    page = read_page(write_report(run))
    assert "ledger not trusted: ledger.jsonl: entry 0" in page.row("privacy", "site-1")[-1]
    assert "the ledger holds less" in page.row("privacy", "site-2")[-1]
    assert "the ledger holds more" in page.row("privacy", "site-3")[-1]
    assert "ε from the ledger does not agree" in page.text


def test_report_of_a_site_that_never_agreed_to_train(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(arms=("federated",))
    path = run / "simulation.json"
    facts = json.loads(path.read_text())
    facts["sites"]["site-10"] = facts["sites"]["site-1"]
    write_json(path, facts)
    page = read_page(write_report(run))
    assert page.row("participation", "site-10")[6] == "3"
    assert [row[0] for row in page.rows["participation"]][-1] == "site-10"


def test_importing_the_report_is_light() -> None:
    heavy = "{'matplotlib', 'torch', 'jinja2', 'dp_accounting', 'flwr'} & set(sys.modules)"
    code = f"import sys, medfed.simulations.reporting.report; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
