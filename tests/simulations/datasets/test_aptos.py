import logging
import shutil
import sys
from pathlib import Path

import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.aptos import CLASSES, load_aptos
from medfed.simulations.datasets.diabetic_retinopathy import CLASSES as KAGGLE_CLASSES

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_aptos, write_picture


def test_aptos_reads_the_official_layout_with_the_grades_of_the_other_set(tmp_path: Path) -> None:
    write_aptos(tmp_path)
    dataset = load_aptos(tmp_path)
    assert dataset.classes == CLASSES == KAGGLE_CLASSES
    assert [r.labels[0] for r in dataset.records] == [*CLASSES, "No DR"]
    first = dataset.records[1]
    assert first.record_id == first.patient_id == "000000001eef"
    assert first.source == "train.csv line 3 (000000001eef.png)"
    assert first.read_image().shape == (20, 24, 3)
    assert {r.split for r in dataset.records} == {None}


def test_aptos_gives_copies_one_patient_and_tells_of_their_grades(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_aptos(tmp_path)
    names = [f"{index * 7919:012x}.png" for index in range(6)]
    images = tmp_path / "train_images"
    shutil.copy(images / names[0], images / names[5])  # both No DR
    shutil.copy(images / names[1], images / names[3])
    with caplog.at_level(logging.WARNING):
        records = load_aptos(tmp_path).records
    patients = [r.patient_id for r in records]
    assert patients[0] == patients[5]
    assert patients[1] == patients[3]
    assert len(set(patients)) == 4
    assert "2 image(s) are in APTOS more than once, 1 of them with different grades" in caplog.text


def test_aptos_does_not_take_missing_images_for_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_aptos(tmp_path)
    images = sorted((tmp_path / "train_images").iterdir())
    images[0].unlink()
    images[1].unlink()
    write_picture(tmp_path / "train_images" / "extra.png", 1, 3)
    with caplog.at_level(logging.WARNING):
        records = load_aptos(tmp_path).records
    assert len({r.patient_id for r in records}) == 6
    assert "1 image(s) have no row in train.csv" in caplog.text
    with pytest.raises(UnreadableImageError, match=r"000000000000\.png.*train_images/"):
        records[0].read_image()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1eef,1", "1eef,7", "line 3, column diagnosis: expected a grade of 0 to 4, got '7'"),
        ("000000001eef,1", "000000000000,1", "line 3, column id_code"),
    ],
)
def test_aptos_refuses_malformed_labels(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_aptos(tmp_path)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        load_aptos(tmp_path)


def test_aptos_says_what_to_place_where(tmp_path: Path) -> None:
    write_aptos(tmp_path)
    shutil.rmtree(tmp_path / "train_images")
    with pytest.raises(DataError, match=r"Expected train_images/ in .*kaggle\.com"):
        load_aptos(tmp_path)
