import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medfed.client.data.prepare import prepare_store
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.vqa_rad import CLASSES, load_vqa_rad

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_picture, write_vqa_rad

JSON = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"


def _edit(folder: Path, index: int, **changes: Any) -> None:
    entries = json.loads((folder / JSON).read_text())
    entries[index].update(changes)
    (folder / JSON).write_text(json.dumps(entries))


def test_vqa_rad_has_a_record_an_image_with_all_its_questions_as_text(tmp_path: Path) -> None:
    write_vqa_rad(tmp_path)
    dataset = load_vqa_rad(tmp_path)
    assert [r.record_id for r in dataset.records] == [f"synpic{n}.jpg" for n in range(100, 104)]
    first = dataset.records[0]
    # Numbers as answers, and questions without their mark, as published.
    assert first.report == "Is there free air? No. how many masses are there? 2."
    assert first.labels == ("HEAD",)
    assert first.columns == {"num_questions": "2"}
    assert {r.split for r in dataset.records} == {None}


def test_vqa_rad_leaves_out_null_and_repeated_questions(tmp_path: Path) -> None:
    write_vqa_rad(tmp_path)
    _edit(tmp_path, 1, question="Is there  free air? ", answer="no.")
    _edit(tmp_path, 3, answer="NULL")
    texts = [r.report for r in load_vqa_rad(tmp_path).records]
    assert texts[:2] == ["Is there free air? No."] * 2


def test_vqa_rad_keeps_images_of_one_case_together(tmp_path: Path) -> None:
    write_vqa_rad(tmp_path)
    _edit(tmp_path, 7, image_case_url="https://medpix.nlm.nih.gov/case?id=0")
    patients = [r.patient_id for r in load_vqa_rad(tmp_path).records]
    assert patients[0] == patients[3] == "synpic100.jpg"
    assert len(set(patients)) == 3


def test_vqa_rad_surfaces_missing_images_and_warns_of_unasked_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_vqa_rad(tmp_path)
    (tmp_path / IMAGES / "synpic101.jpg").unlink()
    write_picture(tmp_path / IMAGES / "synpic999.jpg", 1, 3)
    with caplog.at_level(logging.WARNING):
        records = load_vqa_rad(tmp_path).records
    assert "1 image(s) have no question" in caplog.text
    with pytest.raises(UnreadableImageError, match=r"synpic101\.jpg.*found none"):
        records[1].read_image()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_organ": "CHEST"}, "entry 1: synpic100.jpg is CHEST here and HEAD before"),
        ({"image_organ": "KNEE"}, "entry 1: expected image_name and an image_organ of HEAD"),
        ({"image_name": ""}, "entry 1: expected image_name"),
    ],
)
def test_vqa_rad_refuses_malformed_entries(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    write_vqa_rad(tmp_path)
    _edit(tmp_path, 1, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_vqa_rad(tmp_path)
    assert JSON in str(caught.value)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"qid": 1}]', '"text"'])
def test_vqa_rad_refuses_another_json(tmp_path: Path, content: str) -> None:
    write_vqa_rad(tmp_path)
    (tmp_path / JSON).write_text(content)
    with pytest.raises(DataError, match=r"not valid JSON|expected the keys image_name"):
        load_vqa_rad(tmp_path)


def test_vqa_rad_never_reads_outside_its_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.jpg", 1, 3)
    write_vqa_rad(tmp_path / "data")
    _edit(tmp_path / "data", 0, image_name="../../secret.jpg")
    record = load_vqa_rad(tmp_path / "data").records[0]
    with pytest.raises(UnreadableImageError):
        record.read_image()


def test_real_vqa_rad_has_the_counts_of_its_readme_and_serves_both_tasks(
    real_vqa_rad: Path, tmp_path: Path
) -> None:
    dataset = load_vqa_rad(real_vqa_rad)
    assert len(dataset.records) == 100
    assert Counter(r.labels[0] for r in dataset.records) == {"HEAD": 40, "ABD": 32, "CHEST": 28}
    assert sum(int(r.columns["num_questions"]) for r in dataset.records) == 717
    assert not any("NULL" in r.report or "??" in r.report for r in dataset.records)
    data = DataSection(image_size=32)
    key = {"parent": tmp_path, "pseudonym_key": b"k" * 32}
    organs = prepare_store(dataset, TaskSection(classes=CLASSES), data, **key)  # type: ignore[arg-type]
    assert (len(organs), organs.num_quarantined) == (100, 0)
    texts = prepare_store(dataset, TaskSection(type="report"), data, **key)  # type: ignore[arg-type]
    assert len(texts) == sum(bool(r.report) for r in dataset.records)


def test_real_vqa_rad_has_test_questions_about_images_of_other_questions(
    real_vqa_rad: Path,
) -> None:
    """Why the published split is not used: it would part questions of one image."""
    sides: dict[str, set[bool]] = {}
    for entry in json.loads((real_vqa_rad / JSON).read_text()):
        tested = entry["phrase_type"].startswith("test")
        sides.setdefault(entry["image_name"], set()).add(tested)
    assert Counter(len(own) for own in sides.values()) == {2: 61, 1: 39}
