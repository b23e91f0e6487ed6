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


def test_scan_of_a_data_set_file_says_how_many_images_have_labels(tmp_path: Path) -> None:
    write_stack(tmp_path / "images" / "ct", [0, 2, 4], PatientID="A")
    for number in range(3):
        write_slice(
            tmp_path / "images" / f"{number}.dcm",
            np.zeros((4, 6), np.int16),
            Modality="CR",
            PatientID=f"B{number}",
            SeriesInstanceUID=f"9.{number}",
        )
    (tmp_path / "labels.csv").write_text("id,finding\nA,ill\nB1,well\nB2,\n")
    (tmp_path / "dataset.toml").write_text(
        'name = "d"\n[archive]\nfolders = ["images"]\nexclude = ["0.dcm"]\n'
        '[[labels.tables]]\nfile = "labels.csv"\nkey = "patient"\nkey_column = "id"\n'
        'label_column = "finding"\n'
    )
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["scan", str(tmp_path / "dataset.toml")])
    assert result.exit_code == 0, result.output
    assert "4 of 5 images have a label, a mask or a report." in result.output
    assert "1 file(s) left out by archive.exclude" in result.output
    assert sorted(tmp_path.rglob("*")) == before
    result = CliRunner().invoke(app, ["scan", str(tmp_path / "dataset.toml"), "--json"])
    groups = json.loads(result.stdout)["groups"]
    assert {(row["modality"], row["images"], row["labelled"]) for row in groups} == {
        ("CT", 3, 3), ("CR", 2, 1),
    }  # fmt: skip


def test_scan_of_a_folder_says_nothing_of_labels(archive: Path) -> None:
    result = CliRunner().invoke(app, ["scan", str(archive), "--json"])
    assert all("labelled" not in row for row in json.loads(result.output)["groups"])
