"""Findings in reports: negations, the phantom's five wordings, and real reports."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from medfed.common.errors import StudyError
from medfed.common.metrics import confusion_tables
from medfed.common.metrics.findings import FindingLabeller, finding_metrics
from medfed.common.text import tokenise
from medfed.simulations.phantom.findings import CLASSES, Finding
from medfed.simulations.phantom.reports import WORDINGS, write_report

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")
)
EFFUSION = FindingLabeller({"effusion": ("pleural effusion", "effusion", "fluid")})


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("Small left pleural effusion.", True),
        ("Bilateral effusions.", True),
        ("No pleural effusion.", False),
        ("The lungs are clear", False),
        ("There is no pneumothorax or large pleural effusion.", False),
        ("No pneumonia, effusions, edema, pneumothorax, nodules or masses", False),
        ("Cardiomegaly without effusion.", False),
        ("Effusion without cardiomegaly.", True),
        ("Neither pleural space contains fluid.", False),
        ("The pleural spaces are free of fluid.", False),
        ("Lungs clear of infiltrate; effusion on the left", True),
        ("The heart isn't enlarged and effusion isn't seen.", False),
        ("No nodule. Effusion on the left.", True),
        ("No nodule but an effusion on the left.", True),
        ("No nodule, however effusion persists.", True),
        ("No effusion, although a nodule is seen.", False),
        ("No change in the right effusion.", True),
        ("No significant interval change of the effusion", True),
        ("Effusion, not significantly changed.", True),
        ("The effusion has resolved.", False),
        ("The effusion has not resolved.", True),
        ("Effusion has been ruled out.", False),
        ("Effusion or pneumothorax is not seen.", False),
        ("An effusion is present and pneumothorax is not seen.", True),
        ("An effusion that is not loculated.", True),
        ("Pleura: small effusion.", True),
        ("No effusion on the left. Small effusion on the right.", True),
        ("", False),
    ],
)
def test_labeller_understands_negations(text: str, mentioned: bool) -> None:
    assert EFFUSION(tokenise(text)).tolist() == [mentioned]


@pytest.mark.parametrize(
    "text",
    [
        # Hedged, and negated by nothing that the labeller knows.
        "Evaluation for effusion is limited.",
        "Effusion cannot be ruled out.",
        "Possible effusion.",
    ],
)
def test_labeller_counts_hedged_findings_as_mentioned(text: str) -> None:
    assert EFFUSION(tokenise(text)).tolist() == [True]


def test_labeller_finds_a_phrase_of_words_in_a_row_only() -> None:
    labeller = FindingLabeller({"heart": ("enlarged heart",), "opacity": ("ground-glass opacity",)})
    assert labeller(tokenise("Enlarged. Heart normal.")).tolist() == [False, False]
    assert labeller(tokenise("Enlarged hearts; ground glass opacities")).tolist() == [True, True]


@pytest.mark.parametrize("phrases", [(), ("",), ("effusion", "..."), ("no effusion. clear",)])
def test_labeller_refuses_what_is_no_phrase(phrases: tuple[str, ...]) -> None:
    with pytest.raises(StudyError, match=r"task\.report\.findings\.effusion"):
        FindingLabeller({"effusion": phrases})


PHANTOM = FindingLabeller(
    {
        "nodule": ("nodule", "rounded opacity"),
        "effusion": ("effusion", "fluid"),
        "cardiomegaly": (
            "heart is enlarged", "cardiomegaly", "enlarged cardiac silhouette",
            "cardiac shadow is widened", "enlarged heart",
        ),
    }
)  # fmt: skip


@pytest.mark.parametrize("style", range(len(WORDINGS)))
def test_labeller_reads_every_wording_of_the_phantom(style: int) -> None:
    def finding(kind: str) -> Finding:
        return Finding(kind=kind, side="left", centre=(0.7, 0.5), extent=0.2, contrast=1.0)  # type: ignore[arg-type]

    kinds = CLASSES["xray"][1:]
    for number in range(8):
        there = [bool(number >> index & 1) for index in range(3)]
        findings = tuple(finding(kind) for kind, has in zip(kinds, there, strict=True) if has)
        text = write_report(findings, modality="xray", style=style)
        assert PHANTOM(tokenise(text)).tolist() == there, text


def test_labeller_agrees_with_the_annotators_of_real_reports() -> None:
    path = REAL_DATA / "iu_xray_openi" / "indiana_reports.csv"
    if not path.is_file():
        pytest.skip(f"no real data at {path}; set MEDFED_TEST_DATA")
    labeller = FindingLabeller(
        {
            "effusion": ("effusion",),
            "pneumothorax": ("pneumothorax",),
            "emphysema": ("emphysema", "emphysematous"),
        }
    )
    headings = ("pleural effusion", "pneumothorax", "emphysema")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    truth = np.array([[name in row["MeSH"].lower() for name in headings] for row in rows])
    found = np.array([labeller(tokenise(f"{r['findings']} . {r['impression']}")) for r in rows])
    # "No pleural effusion or pneumothorax" is in most of the 2277 reports.
    assert truth.sum() < 200
    for label in range(3):
        precision, recall, _, _ = precision_recall_fscore_support(
            truth[:, label], found[:, label], average="binary"
        )
        assert precision > 0.75, headings[label]
        assert recall > 0.8, headings[label]


def test_precision_recall_and_f1_agree_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.random((2, 60, 3)) < 0.4
    figures = finding_metrics(confusion_tables(truth, found), ("a", "b", "c"))
    keys = ("finding_precision", "finding_recall", "finding_f1")
    micro = precision_recall_fscore_support(truth, found, average="micro")
    assert [figures[key] for key in keys] == pytest.approx(micro[:3])
    each = precision_recall_fscore_support(truth, found, average=None)
    for key, values in zip(keys, each[:3], strict=True):
        assert [figures[f"{key}/{name}"] for name in "abc"] == pytest.approx(values.tolist())
    assert figures["finding_f1_macro"] == pytest.approx(each[2].mean())


def test_finding_that_nobody_mentions_has_no_figures() -> None:
    nobody = np.zeros((2, 1), dtype=bool)
    assert finding_metrics(confusion_tables(nobody, nobody), ("a",)) == {}
    missed = finding_metrics(confusion_tables(~nobody, nobody), ("a",))
    assert missed == {
        "finding_recall": 0.0, "finding_f1": 0.0, "finding_f1_macro": 0.0,
        "finding_recall/a": 0.0, "finding_f1/a": 0.0,
    }  # fmt: skip
