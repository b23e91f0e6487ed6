import logging
import sys
from pathlib import Path

import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.nih_chestxray14 import load_nih_chestxray14

sys.path.insert(0, str(Path(__file__).parent))

from layouts_core import write_picture
from layouts_other import write_csv
from layouts_radiology import NIH_HEADER, write_nih

TABLE = "Data_Entry_2017_v2020.csv"


def _write(folder: Path, *rows: str, header: str = NIH_HEADER) -> Path:
    """`rows` are findings, patient, age, sex; images are numbered."""
    lines = []
    for number, row in enumerate(rows):
        findings, patient, age, sex = row.split(",")
        name = f"{int(patient):08d}_{number:03d}.png"
        lines.append(f"{name},{findings},0,{patient},{age},{sex},AP,9,9,0.1,0.1,")
        write_picture(folder / "images" / name, number)
    write_csv(folder / TABLE, header, lines)
    return folder


def test_nih_reads_findings_columns_and_patients(tmp_path: Path) -> None:
    write_nih(tmp_path)
    dataset = load_nih_chestxray14(tmp_path)
    first, second = dataset.records[:2]
    assert first.record_id == "00000001_000.png"
    assert first.labels == ()
    assert second.labels == ("Cardiomegaly", "Effusion")
    assert first.patient_id == second.patient_id == "00000001"
    assert first.columns == {"age": "51", "sex": "F", "view": "PA", "follow_up": "0"}
    assert first.source == "Data_Entry_2017_v2020.csv line 2 (00000001_000.png)"
    assert [r.split for r in dataset.records] == ["train"] * 6 + ["test"] * 2


@pytest.mark.parametrize(
    ("written", "years"),
    [
        ("58", "58"),
        ("058Y", "58"),
        ("011M", "0"),
        ("030M", "2"),
        ("001D", "0"),
        ("120", "120"),
        ("411", ""),
        ("148", ""),
        ("", ""),
    ],
)
def test_nih_takes_ages_in_years_and_leaves_impossible_ones_out(
    tmp_path: Path, written: str, years: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (record,) = load_nih_chestxray14(_write(tmp_path, f"Mass,7,{written},M")).records
    assert record.columns["age"] == years
    assert ("1 image(s) have an age beyond any life" in caplog.text) == (written in ("411", "148"))


@pytest.mark.parametrize(
    "header",
    [
        NIH_HEADER.replace("Patient Gender", "Patient Sex"),
        NIH_HEADER.replace("[Width,Height]", "[Width,OriginalImage[Height]"),
    ],
)
def test_nih_takes_the_headers_of_other_copies(tmp_path: Path, header: str) -> None:
    (record,) = load_nih_chestxray14(_write(tmp_path, "Mass,7,30,M", header=header)).records
    assert record.columns["sex"] == "M"


def test_nih_refuses_a_table_without_sex(tmp_path: Path) -> None:
    _write(tmp_path, "Mass,7,30,M", header=NIH_HEADER.replace("Patient Gender", "Patient"))
    with pytest.raises(DataError, match="line 1: expected the columns Patient Gender or"):
        load_nih_chestxray14(tmp_path)


def test_nih_finds_images_in_the_folders_of_kaggle(tmp_path: Path) -> None:
    write_nih(tmp_path)
    before = load_nih_chestxray14(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        part = tmp_path / f"images_{number % 2 + 1:03d}" / "images"
        part.mkdir(parents=True, exist_ok=True)
        path.rename(part / path.name)
    (tmp_path / "images").rmdir()
    after = load_nih_chestxray14(tmp_path)
    assert after.digest == before.digest
    assert after.records[3].read_image().shape == (20, 24)


def test_nih_keeps_a_patient_of_both_lists_in_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, "Mass,7,30,M", "Mass,7,31,M", "Mass,8,31,M")
    (tmp_path / "train_val_list.txt").write_text("00000007_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000007_001.png\r\n00000008_002.png\n")
    with caplog.at_level(logging.WARNING):
        records = load_nih_chestxray14(tmp_path).records
    assert [r.split for r in records] == ["train", "train", "test"]
    assert "1 of their image(s) move to train" in caplog.text


def test_nih_goes_without_a_split_where_there_are_no_lists(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = load_nih_chestxray14(_write(tmp_path, "Mass,7,30,M")).records
    assert records[0].split is None
    assert "no train_val_list.txt nor test_list.txt" in caplog.text


def test_nih_refuses_lists_that_do_not_fit(tmp_path: Path) -> None:
    _write(tmp_path, "Mass,7,30,M", "Mass,8,30,M")
    (tmp_path / "train_val_list.txt").write_text("00000007_000.png\n")
    with pytest.raises(DataError, match=r"got train_val_list\.txt only"):
        load_nih_chestxray14(tmp_path)
    (tmp_path / "test_list.txt").write_text("")
    with pytest.raises(DataError, match=r"csv line 3: .* got 00000008_001\.png in none"):
        load_nih_chestxray14(tmp_path)
    (tmp_path / "test_list.txt").write_text("00000008_001.png\n00000007_000.png\n")
    with pytest.raises(DataError, match=r"test_list\.txt line 2: 00000007_000\.png"):
        load_nih_chestxray14(tmp_path)


def test_nih_surfaces_missing_images_and_findings_outside_the_fourteen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, "Effusion|Scoliosis,7,30,M", "No Finding,8,30,M")
    (tmp_path / "images" / "00000008_001.png").rename(tmp_path / "images" / "other.png")
    first, second = load_nih_chestxray14(tmp_path).records
    assert first.labels == ("Effusion", "Scoliosis")
    with pytest.raises(UnreadableImageError, match=r"Expected 00000008_001\.png"):
        second.read_image()
    assert "1 row(s) name an image that is not here" in caplog.text
    assert "1 image(s) have no row in the table" in caplog.text


def test_nih_refuses_an_image_twice(tmp_path: Path) -> None:
    _write(tmp_path, "Mass,7,30,M")
    with (tmp_path / TABLE).open("a") as file:
        file.write("00000007_000.png,Mass,0,7,30,M,AP,9,9,0.1,0.1,\n")
    with pytest.raises(DataError, match=r"line 3, column Image Index: .* also in line 2"):
        load_nih_chestxray14(tmp_path)
