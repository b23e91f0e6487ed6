"""Live progress follows the task's leading figure."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medfed.cli.progress import show_progress
from medfed.common.study_file import parse_study
from medfed.server.records import ArmFolder

TASKS: dict[str, dict[str, Any]] = {
    "AUROC": {"task": {"classes": ["a", "b"]}},
    "Quadratic kappa": {"task": {"classes": ["a", "b", "c"], "mode": "ordinal"}},
    "Dice": {"task": {"type": "segmentation", "classes": ["a"]}, "model": {"name": "unet"}},
    "BLEU-4": {"task": {"type": "report"}, "model": {"name": "report_lstm"}},
    "Finding F1": {
        "task": {"type": "report", "report": {"findings": {"a": ["a"]}}},
        "model": {"name": "report_lstm"},
    },
}
KEYS = {"AUROC": "auroc", "Quadratic kappa": "kappa", "Dice": "dice", "BLEU-4": "bleu4",
        "Finding F1": "finding_f1"}  # fmt: skip


@pytest.mark.parametrize("title", TASKS)
def test_progress_shows_the_leading_figure(tmp_path: Path, title: str) -> None:
    study = parse_study(
        {
            "study": {"name": "x"},
            "training": {"rounds": 2, "local_epochs": 1},
            "privacy": {"unit": "none"},
            **TASKS[title],
        },
        "test",
    )
    (tmp_path / "arms" / "federated").mkdir(parents=True)
    arm = ArmFolder(tmp_path / "arms" / "federated")
    text = io.StringIO()
    with show_progress(tmp_path, study, Console(file=text, width=120)):
        arm.emit("started", rounds=2, after=0)
        arm.emit("words", words=12, sites=3)
        arm.emit("round", round=1, sites=2)
        arm.emit("completed", round=1, metrics={KEYS[title]: 0.8765, "loss": 1.0}, epsilon=None)
    assert f"federated: round 1/2  {title} 0.876" in text.getvalue()
    assert "federated: 12 words agreed from 3 sites" in text.getvalue()
