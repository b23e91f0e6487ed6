import logging
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.oct_amd import CLASSES, load_oct_amd

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_oct_amd, write_picture


def test_oct_amd_keys_patients_by_the_number_in_the_name(tmp_path: Path) -> None:
    write_oct_amd(tmp_path)
    dataset = load_oct_amd(tmp_path)
    assert dataset.classes == CLASSES
    assert Counter((r.labels[0], r.split) for r in dataset.records) == {
        (label, side): number for label in CLASSES for side, number in (("train", 4), ("test", 2))
    }
    first = dataset.records[0]
    assert (first.record_id, first.patient_id) == ("train/CNV/CNV-1000-1", "1000")
    assert first.source == "train/CNV/CNV-1000-1.jpeg"
    assert first.read_image().shape == (20, 24)


def test_oct_amd_tests_on_all_scans_of_a_patient_of_the_test_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_oct_amd(tmp_path)
    root = tmp_path / "OCT2017"
    # Patient 1000 is in the test part too, and under another class.
    write_picture(root / "test" / "DRUSEN" / "DRUSEN-1000-9.jpeg", 5)
    with caplog.at_level(logging.WARNING):
        records = load_oct_amd(tmp_path).records
    assert [r.split for r in records if r.patient_id == "1000"] == ["test"] * 3
    assert [r.split for r in records if r.patient_id == "1001"] == ["train"] * 2
    assert "2 of their image(s) move to test" in caplog.text


def test_oct_amd_joins_patients_with_the_same_file(tmp_path: Path) -> None:
    write_oct_amd(tmp_path)
    root = tmp_path / "OCT2017"
    shutil.copy(
        root / "test" / "DME" / "DME-2002-1.jpeg", root / "train" / "NORMAL" / "NORMAL-77-3.jpeg"
    )
    records = {r.record_id: r for r in load_oct_amd(tmp_path).records}
    copy = records["train/NORMAL/NORMAL-77-3"]
    assert copy.patient_id == records["test/DME/DME-2002-1"].patient_id
    assert copy.split == "test"


@pytest.mark.parametrize("below", ["", "OCT2017 ", "CellData/OCT", "ZhangLabData/CellData/OCT"])
def test_oct_amd_finds_the_folder_of_every_release(tmp_path: Path, below: str) -> None:
    write_oct_amd(tmp_path)
    root = tmp_path / "data" / below if below else tmp_path / "data"
    root.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "OCT2017").rename(root)
    assert len(load_oct_amd(tmp_path / "data").records) == 24


def test_oct_amd_counts_kaggles_val_as_train_and_has_no_split_without_test(
    tmp_path: Path,
) -> None:
    write_oct_amd(tmp_path)
    root = tmp_path / "OCT2017"
    write_picture(root / "val" / "CNV" / "CNV-1-1.jpeg", 5)
    records = {r.record_id: r for r in load_oct_amd(tmp_path).records}
    assert records["val/CNV/CNV-1-1"].split == "train"
    shutil.rmtree(root / "test")
    assert {r.split for r in load_oct_amd(tmp_path).records} == {None}


def test_oct_amd_leaves_out_what_is_not_named_after_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_oct_amd(tmp_path)
    root = tmp_path / "OCT2017"
    write_picture(root / "train" / "CNV" / "DME-5-1.jpeg", 5)
    write_picture(root / "train" / "CNV" / "scan.jpeg", 5)
    (root / "train" / "CNV" / "._CNV-1000-1.jpeg").write_bytes(b"resource fork")
    with caplog.at_level(logging.WARNING):
        assert len(load_oct_amd(tmp_path).records) == 24
    assert "2 picture(s) are not named after their folder's class" in caplog.text


def test_oct_amd_surfaces_a_damaged_image_when_read(tmp_path: Path) -> None:
    write_oct_amd(tmp_path)
    path = tmp_path / "OCT2017" / "train" / "CNV" / "CNV-1000-1.jpeg"
    path.write_bytes(path.read_bytes()[:50])
    records = load_oct_amd(tmp_path).records
    assert len(records) == 24
    with pytest.raises(UnreadableImageError, match=r"CNV-1000-1\.jpeg cannot be decoded"):
        records[0].read_image()
