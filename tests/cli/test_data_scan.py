"""`medfed data scan` as a user meets it."""

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "client/data/dicom"))

from slices import write_slice, write_stack

from medfed.cli import data_scan

app = typer.Typer()
data_scan.add_to(app)
app.callback()(lambda: None)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_stack(tmp_path / "ct", [0, 2, 6], Manufacturer="[bold]ACME")
    write_slice(tmp_path / "cr", np.zeros((4, 6), np.int16), Modality="CR", PatientID="SECRET",
                SeriesInstanceUID="9.9")  # fmt: skip
    (tmp_path / "bad.dcm").write_bytes((tmp_path / "cr").read_bytes()[:-20])
    (tmp_path / "notes.txt").write_text("hello\n")
    return tmp_path


def test_scan_shows_what_is_there_and_what_is_not_usable(archive: Path) -> None:
    result = CliRunner().invoke(app, ["scan", str(archive)])
    assert result.exit_code == 0, result.output
    for text in (
        "6 files: 4 usable",
        "2 patients",
        "[bold]ACME",
        "4 x 6",
        "4 mm between slices 2 and 3",
        "cannot be read: cut off",
        "bad.dcm: Expected 48 bytes of pixels, got 28",
        "no image: text file",
    ):
        assert text in result.output
    assert "SECRET" not in result.output


def test_scan_prints_json_and_lists_the_unusable(archive: Path, tmp_path: Path) -> None:
    listed = tmp_path / "unusable.jsonl"
    result = CliRunner().invoke(app, ["scan", str(archive), "--json", "--unusable", str(listed)])
    table = json.loads(result.output)
    assert table["counts"]["usable_files"] == 4
    assert [row["category"] for row in table["unusable_files"]] == ["unreadable", "not_an_image"]
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert rows == table["unusable_files"]
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600


def test_scan_ends_with_2_when_nothing_is_usable(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    result = CliRunner().invoke(app, ["scan", str(tmp_path)])
    assert result.exit_code == 2
    assert "1 files: 0 usable" in result.output
