"""The report of each task shows that task's figures, and nothing of another's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.common.errors import RunError
from medfed.common.ledger import Ledger, Spend
from medfed.common.metrics import quadratic_kappa
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.spending import ledger_checks
from medfed.simulations.reporting.tables import ABSENT

MakeRun = Callable[..., Path]
COMMON = {"convergence", "sites", "matrix", "epsilon", "traffic", "times", "partition"}


def _sums(run: Path) -> dict[str, Any]:
    parts = json.loads((run / "arms" / "federated" / "final_sums.json").read_text())
    [group] = parts["groups"]
    return {name: np.array(values) for name, values in group["sums"].items()}


def _written(run: Path) -> set[str]:
    return {path.stem for path in (run / "figures").glob("*.svg")}


def test_segmentation_report_shows_structures(finished_segmentation: Path, read_page: Any) -> None:
    run = finished_segmentation
    page = read_page(run / "report.html")
    metrics = ArmFolder(run / "arms" / "federated").read_rounds()[-1].metrics
    assert metrics is not None
    keys = ("dice", "dice_present", "iou", "hd95", "surface_dice", "sensitivity", "precision")
    assert page.row("comparison", "Federated")[1:8] == [f"{metrics[key]:.3f}" for key in keys]
    assert f"the model reaches Dice {metrics['dice']:.3f}" in page.text
    assert page.row("convergence", "Federated")[-1] == f"{metrics['dice']:.3f}"
    for name in ("core", "rim"):
        row = page.row("model", name)
        assert row[1:8] == [f"{metrics[f'{key}/{name}']:.3f}" for key in keys]
    (neither, alarms), (missed, found) = _sums(run)["detection"][1].tolist()
    detected = [row for row in page.rows["model"] if row[0] == "rim"][1]
    assert detected[1:6] == [
        *map(str, (missed + found, found, missed, neither + alarms, alarms)),
    ]
    assert "AUROC" not in page.text
    assert "Images that hold each structure" in page.text
    assert _written(run) == COMMON | {"structures", "detection"}


def test_segmentation_report_shows_each_structure_at_each_site(
    finished_segmentation: Path, read_page: Any
) -> None:
    run = finished_segmentation
    page = read_page(run / "report.html")
    sites = ArmFolder(run / "arms" / "federated").read_rounds()[-1].sites
    rows = [row for row in page.rows["model"] if row[0] == "site-2"]
    assert [row[1] for row in rows] == ["core", "rim"]
    metrics = sites["site-2"].metrics
    assert metrics is not None
    assert rows[1][2:4] == [f"{metrics['dice/rim']:.3f}", f"{metrics['hd95/rim']:.3f}"]


def test_segmentation_examples_say_what_was_missed(
    finished_segmentation: Path, read_page: Any
) -> None:
    run = finished_segmentation
    page = read_page(run / "report.html")
    assert page.text.count("✗ Missed: core") == 4
    assert "✓ Nothing there, nothing found" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 8


def test_report_report_shows_text_figures_and_findings(
    finished_reports: Path, read_page: Any
) -> None:
    run = finished_reports
    page = read_page(run / "report.html")
    metrics = ArmFolder(run / "arms" / "federated").read_rounds()[-1].metrics
    assert metrics is not None
    assert f"the model reaches Finding F1 {metrics['finding_f1']:.3f}" in page.text
    text = [f"{metrics[key]:.3f}" for key in ("bleu1", "bleu2", "bleu3", "bleu4")]
    assert page.row("model", "All sites")[2:6] == text
    tables = _sums(run)["findings"]
    (_, invented), (missed, right) = tables[1].tolist()
    shares = [metrics[f"finding_{key}/nodule"] for key in ("precision", "recall", "f1")]
    assert page.row("model", "nodule")[1:] == [
        *map(str, (missed + right, right, missed, invented)),
        *(f"{share:.3f}" for share in shares),
    ]
    assert page.row("model", "All findings")[1] == str(tables[:, 1].sum())
    assert _written(run) == COMMON - {"epsilon"} | {"text", "findings"}
    assert page.headings.index("vocabulary") == page.headings.index("model") + 1
    assert "Reports that mention each finding" in page.text


def test_report_report_says_how_words_were_agreed(finished_reports: Path, read_page: Any) -> None:
    page = read_page(finished_reports / "report.html")
    assert "The vocabulary has 8 words. 2 of 3 sites named words" in page.text
    assert "reports of at least 5 patients hold it" in page.text
    assert "where a threshold keeps rare ones back" in page.text
    assert page.row("vocabulary", "site-1") == ["site-1", "ok", "6", "1.20 kB", ABSENT, ""]
    assert page.row("vocabulary", "site-3") == [
        "site-3",
        "refused",
        ABSENT,
        "90 B",
        ABSENT,
        "policy",
    ]
    assert ". clear effusion is lungs no nodule there" in page.text


def test_report_report_says_what_noisy_words_cost(make_run: MakeRun, read_page: Any) -> None:
    page = read_page(write_report(make_run(task_type="report", words_noise=4.0)))
    assert "named under differential privacy" in page.text
    assert "probability of at most 1e-6" in page.text
    assert "a threshold keeps rare ones back" not in page.text
    assert page.row("vocabulary", "site-1")[4] == "0.2500"


def test_report_report_with_public_words_shows_no_path(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(task_type="report", public_words=True)
    page = read_page(write_report(run))
    assert "a public file (words.txt); no site was asked" in page.text
    assert "somebody" in (run / "study.toml").read_text()
    assert "somebody" not in page.text
    assert 'vocabulary = "words.txt"' in page.text


def test_report_report_without_findings_leads_with_bleu(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(task_type="report", findings=())
    page = read_page(write_report(run))
    assert "the model reaches BLEU-4" in page.text
    assert "names no findings" in page.text
    assert _written(run) == COMMON - {"epsilon"} | {"text"}
    assert "no finding in either" not in page.text


def test_report_examples_compare_both_texts(finished_reports: Path, read_page: Any) -> None:
    page = read_page(finished_reports / "report.html")
    assert page.text.count("There is a <nodule>.") == 8
    assert page.text.count("✗ missed nodule") == 4
    assert page.text.count("✗ invented effusion") == 4
    assert page.text.count("no finding in either") == 4
    assert "no words" in page.text
    assert sum(tag == "mark" for tag, _ in page.tags) == 8


def test_report_of_grades_leads_with_kappa(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(mode="ordinal")
    page = read_page(write_report(run))
    kappa = quadratic_kappa(_sums(run)["matrix"])
    assert page.row("comparison", "Federated")[1] == f"{kappa:.3f}"
    assert f"the model reaches Quadratic kappa {kappa:.3f}" in page.text
    assert page.row("sites", "Site")[2] == "Quadratic kappa federated"


def test_report_of_several_labels_an_image(make_run: MakeRun, read_page: Any) -> None:
    run = make_run(mode="multilabel")
    page = read_page(write_report(run))
    assert "the model reaches AUROC" in page.text
    assert _written(run) == COMMON | {"roc", "calibration", "confusion"}


@pytest.mark.parametrize("finished", ["finished_segmentation", "finished_reports"])
def test_report_of_every_task_needs_nothing_and_repeats(
    request: pytest.FixtureRequest, read_page: Any, finished: str
) -> None:
    run: Path = request.getfixturevalue(finished)
    first = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == first
    page = read_page(run / "report.html")
    assert [v for v in page.links if not v.startswith(("#", "data:image/png;base64,"))] == []
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    assert all(values.get("alt") for tag, values in page.tags if tag == "img")
    assert all(values.get("aria-label") for _, values in page.tags if values.get("role") == "img")


@pytest.mark.parametrize("task_type", ["segmentation", "report"])
def test_report_of_every_task_before_anything_was_trained(
    make_run: MakeRun, read_page: Any, task_type: str
) -> None:
    page = read_page(write_report(make_run(task_type=task_type, arms=())))
    assert "the federated model has not been evaluated" in page.text
    assert ("vocabulary" in page.headings) == (task_type == "report")


def test_report_says_when_the_leading_figure_is_undefined(
    make_run: MakeRun, read_page: Any
) -> None:
    run = make_run(task_type="report", arms=("federated",))
    arm = ArmFolder(run / "arms" / "federated")
    records = arm.read_rounds()
    for record in records:
        assert record.metrics is not None
        del record.metrics["finding_f1"]
    arm.rewrite_rounds(records)
    page = read_page(write_report(run))
    assert "the federated model has no Finding F1 on its held-out images" in page.text


def test_report_says_what_is_sent_and_what_is_frozen(make_run: MakeRun, read_page: Any) -> None:
    pinned = "ab" * 32
    run = make_run(
        model={
            "name": "resnet18",
            "weights": "/home/somebody/resnet18.pth",
            "weights_sha256": pinned,
            "freeze": "backbone",
        },
        augmentation={"flip": "both", "zoom": 0.1, "multiplicity": 4},
    )
    page = read_page(write_report(run))
    assert "6 numbers (24 B)" in page.text
    assert "4 numbers; they never travel" in page.text
    assert f"resnet18.pth, SHA-256 {pinned}" in page.text
    assert "horizontal and vertical flip, zoom to ±10%; each with probability 0.5" in page.text
    assert "4, averaged within the patient's gradient before it is clipped" in page.text
    assert "somebody" not in page.text


def test_report_counts_frozen_numbers_only_at_the_end(make_run: MakeRun, read_page: Any) -> None:
    page = read_page(write_report(make_run(finished=False)))
    assert "6 numbers (24 B)" in page.text
    assert "counted when the run has finished" in page.text


def test_ledger_without_noise_in_training_is_held_against_the_words(make_run: MakeRun) -> None:
    # Words with noise, training without: the ledger's one entry is what naming them cost.
    run = make_run(task_type="report", private=False, words_noise=4.0, arms=("federated",))
    state = run / "arms" / "federated" / "sites" / "site-1" / "state"
    spend = Spend(
        kind="words", release="w", study="s", run="run-a", round_number=1, unit="patient",
        images_per_patient=1, noise_multiplier=4.0, sample_rate=1.0, steps=1, max_grad_norm=1.0,
        noise="seeded", extra_delta=1e-6,
    )  # fmt: skip
    with Ledger(state).locked() as ledger:
        ledger.append(spend)
    federated = load_run(run).federated
    assert federated is not None
    cost = federated.ledgers["site-1"].epsilon(1e-5)
    path = run / "arms" / "federated" / "vocabulary.json"
    table = json.loads(path.read_text())
    table["sites"]["site-1"]["epsilon"] = cost
    path.write_text(json.dumps(table))
    data = load_run(run)
    [check] = ledger_checks(data, data.federated)
    assert check.agrees


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocabulary.json", '{"words": "abc", "sites": {}}'),
        ("vocabulary.json", '{"words": []}'),
        ("vocabulary.json", '{"words": [], "sites": {"site-1": {}}}'),
        ("checkpoint/state.json", '{"weights": "absent.safetensors", "names": ["a"]}'),
        ("checkpoint/state.json", '{"names": []}'),
    ],
)
def test_load_run_names_the_damaged_file_of_an_arm(
    make_run: MakeRun, name: str, content: str
) -> None:
    run = make_run(task_type="report", arms=("federated",), finished=False)
    (run / "arms" / "federated" / name).write_text(content)
    with pytest.raises(RunError, match=rf"{Path(name).name} is damaged"):
        load_run(run)
