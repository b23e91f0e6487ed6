"""Examples and report of whole runs, one of each task that is not classification."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.study_file import load_study
from medfed.simulations.examples import write_examples

COMMON = """
[study]
name = "tiny"
seed = 3
[data]
image_size = 32
[training]
rounds = 2
local_epochs = 1
batch_size = 8
optimizer = "adam"
learning_rate = 0.01
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
[simulation.phantom]
num_patients = 60
num_scanners = 2
[simulation.partition]
method = "iid"
num_sites = 2
"""
TASKS = {
    "segmentation": """
[task]
type = "segmentation"
classes = ["nodule", "effusion", "cardiomegaly"]
[model]
name = "unet"
widths = [4, 8]
""",
    "report": """
[task]
type = "report"
[task.report]
max_words = 12
min_patients = 2
[task.report.findings]
effusion = ["effusion"]
nodule = ["nodule"]
[model]
name = "report_lstm"
embedding_size = 8
hidden_size = 8
attention_size = 4
""",
}


@pytest.mark.parametrize("task", TASKS)
def test_run_ends_with_examples_of_its_task(medfed, tmp_path, task) -> None:  # type: ignore[no-untyped-def]
    study = tmp_path / "tiny.toml"
    study.write_text(COMMON + TASKS[task])
    run = tmp_path / "run"
    medfed("simulate", study, "--out", run)
    before = files(run / "examples")
    rows = json.loads(before["examples.json"])
    assert len(rows) == 16
    assert {row["site"] for row in rows} == {"site-1", "site-2"}
    for row in rows:
        picture = np.asarray(Image.open(run / "examples" / row["image"]))
        assert picture.shape == (320, 320, 3)
        check_row(task, row)
    write_examples(run, load_study(run / "study.toml"))
    assert files(run / "examples") == before
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<li class="example ') == 16
    assert ('id="vocabulary"' in page) == (task == "report")
    if task == "segmentation":
        check_ends_that_a_kill_cut_off(medfed, run, before)


def check_ends_that_a_kill_cut_off(medfed, run: Path, before: dict[str, bytes]) -> None:  # type: ignore[no-untyped-def]
    """No picture is ever half written; and a run that goes on stops at none of these files."""
    with no_file_larger_than(1000), pytest.raises(OSError, match="large"):
        write_examples(run, load_study(run / "study.toml"))
    assert files(run / "examples") == before
    # What a kill left in earlier versions, or a machine that lost its power.
    (run / "examples" / "003.png").write_bytes(b"")
    medfed("simulate", "--resume", run)
    assert files(run / "examples") == before


@contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_row(task: str, row: dict) -> None:  # type: ignore[type-arg]
    if task == "segmentation":
        assert set(row["dice"]) == {"nodule", "effusion", "cardiomegaly"}
        # Whatever is missed has Dice 0, whatever is neither there nor found 1.
        for name, dice in row["dice"].items():
            if name in row["missed"] or name in row["false_alarms"]:
                assert dice == 0
            elif name not in row["present"]:
                assert dice == 1
    else:
        true = " ".join(sentence["text"] for sentence in row["true"])
        assert len(true) > 20
        assert set(row["findings"].values()) <= {"found", "missed", "invented"}
        assert 0 <= row["rouge_l"] <= 1


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
