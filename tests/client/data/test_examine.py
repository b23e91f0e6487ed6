"""`medfed data check` finds what was planted, says so once, and finds nothing in clean data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medfed.client.data.examine import Examination, examine_dataset, examine_site
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.site import SiteConfig
from medfed.common.study import StudyConfig

NUM = 120
Records = list[SourceRecord]


def picture(number: int) -> np.ndarray:
    """Smooth blobs, 0 to 255, of their own for every number."""
    noise = np.random.default_rng(number).normal(size=(40, 48))
    smooth = gaussian_filter(noise, 4)
    return np.uint8(255 * (smooth - smooth.min()) / (smooth.max() - smooth.min()))


def mask(number: int) -> np.ndarray:
    drawn = np.zeros((40, 48), dtype=np.uint8)
    drawn[5:15, 5:20] = 1 + number % 2
    return drawn


def record(number: int, **values: Any) -> SourceRecord:
    fields: dict[str, Any] = {
        "record_id": f"{number:03d}",
        "patient_id": f"Doe^Jane^{number // 2}",
        "labels": ("a",) if number // 2 % 3 else ("b",),
        "source": f"image {number}",
        "read_image": lambda: picture(number),
        "read_mask": lambda: mask(number),
        "split": "test" if number // 2 % 4 == 0 else "train",
        **values,
    }
    return SourceRecord(**fields)


def dataset(records: Records) -> SourceDataset:
    return SourceDataset(
        name="planted", licence="", citation="", classes=("a", "b"),
        records=tuple(records), digest="0" * 64,
    )  # fmt: skip


def make_study(kind: str = "classification", **sections: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "tiny"},
            "task": {"type": kind, "classes": ["a", "b"]},
            "model": {"name": "cnn" if kind == "classification" else "unet"},
            "data": {"image_size": 32},
            "training": {"local_steps": 2, "batch_size": 4},
            "privacy": {"unit": "none"},
            **sections,
        }
    )


CLASSES, MASKS = make_study(), make_study("segmentation")


def examine(records: Records, study: StudyConfig = CLASSES) -> Examination:
    return examine_dataset(dataset(records), study)


def clean() -> Records:
    return [record(number) for number in range(NUM)]


def told(result: Examination, level: str) -> list[str]:
    return [f"{one.check}: {one.text}" for one in result.findings if one.level == level]


@pytest.mark.parametrize("study", [CLASSES, MASKS], ids=["classes", "masks"])
def test_clean_data_gives_neither_errors_nor_warnings(study: StudyConfig) -> None:
    result = examine(clean(), study)
    assert {one.level for one in result.findings} == {"ok"}, result.findings
    assert (result.num_images, result.num_patients, result.num_errors) == (NUM, NUM // 2, 0)
    assert sum(result.classes["a"].values()) + sum(result.classes["b"].values()) == NUM


def change(number: int, **values: Any) -> Callable[[Records], None]:
    def plant(records: Records) -> None:
        records[number] = replace(records[number], **values)

    return plant


def constant(value: float, dtype: Any = np.uint8) -> Callable[[], np.ndarray]:
    return lambda: np.full((40, 48), value, dtype=dtype)


def copy(source: int, target: int, **values: Any) -> Callable[[Records], None]:
    return change(target, read_image=lambda: picture(source), **values)


def brighter_and_smaller() -> np.ndarray:
    small = Image.fromarray(picture(3)).resize((44, 36), Image.Resampling.BILINEAR)
    return np.uint8(np.asarray(small) * 0.9 + 10)


def only(label: str) -> Callable[[Records], None]:
    def plant(records: Records) -> None:
        for n, one in enumerate(records):
            if one.split == "test":
                records[n] = replace(one, labels=(label,))

    return plant


def no_test_side(records: Records) -> None:
    records[:] = [replace(one, split="train") for one in records]


def few(records: Records) -> None:
    del records[8:]


def unsplit_and_rare(records: Records) -> None:
    records[:] = [
        replace(one, split=None, labels=("b",) if n < 6 else ("a",))
        for n, one in enumerate(records)
    ]


@pytest.mark.parametrize(
    ("plant", "level", "fragment"),
    [
        (change(4, labels=("zebra",)), "error", "labels: 'zebra' (1 images): outside"),
        (change(4, labels=()), "error", "labels: 1 image(s) have no label"),
        (change(4, labels=("a", "b")), "error", "image 4. Mend their rows, or set task.mode"),
        (change(5, record_id="004"), "error", "identifiers: image 4, image 5"),
        (change(2, split="test"), "error", "leakage: images of patients who are on both sides"),
        (
            copy(0, 30),
            "error",
            "copies: 1 picture(s) occur more than once, pixel for pixel, on both",
        ),
        (copy(2, 36), "warning", "of different patients: image 2 = image 36"),
        (copy(2, 3), "warning", "of one patient: image 2 = image 3"),
        (copy(2, 3, labels=("b",)), "warning", "with different labels: image 2 = image 3"),
        (change(36, read_image=brighter_and_smaller), "warning", "image 3 ~ image 36"),
        (change(7, read_image=constant(0)), "warning", "1 image(s) are all black"),
        (
            change(7, read_image=constant(9)),
            "warning",
            "of one single grey. Leave them out: image 7",
        ),
        (
            change(7, read_image=lambda: picture(7) // 40),
            "warning",
            "1 image(s) span fewer than 64 of 256 greys",
        ),
        (
            change(7, read_image=lambda: np.maximum(picture(7), np.uint8(255) * (picture(8) > 90))),
            "warning",
            "are white for more than half",
        ),
        (
            change(7, read_image=lambda: picture(7) * np.float32(16)),
            "error",
            "hold values outside 0 to 255",
        ),
        (
            change(7, read_image=lambda: picture(7)[:9, :9]),
            "warning",
            "less than half of data.image",
        ),
        (change(7, read_image=lambda: picture(7)[:15]), "warning", "more than 2 times as long"),
        (only("a"), "warning", "split: no test image shows b"),
        (no_test_side, "error", "split: no image is on the test side"),
        (few, "warning", "patients: 4 patients, at most 2 images each: few to learn from"),
        (few, "warning", "fewer than 5 held-out patients"),
        (unsplit_and_rare, "warning", "will leave fewer than 5 of b (3 patients)"),
        (change(9, spacing_mm=(1.0, 1.0)), "ok", "geometry: all 40 x 48 pixels"),
    ],
)
def test_planted_fault_is_found(
    plant: Callable[[Records], None], level: str, fragment: str
) -> None:
    records = clean()
    plant(records)
    lines = told(examine(records), level)
    assert any(fragment in line for line in lines), lines
    for line in lines:
        assert "Jane" not in line


@pytest.mark.parametrize(
    ("plant", "level", "fragment"),
    [
        (change(4, read_mask=None), "warning", "readable: 1 of 120 images cannot be used"),
        (
            change(4, read_mask=lambda: mask(4).T),
            "warning",
            "the same sides in another order: one of the two is turned",
        ),
        (change(4, read_mask=lambda: mask(4) * 3), "warning", "mask value 3 is outside"),
        (
            change(4, read_mask=lambda: np.zeros((40, 48), np.uint8)),
            "warning",
            "masks: 1 of 120 are empty: image 4",
        ),
        (
            change(4, read_mask=lambda: np.ones((40, 48), np.uint8)),
            "warning",
            "masks: 1 cover more than 95% of the image: image 4",
        ),
    ],
)
def test_planted_fault_of_a_mask_is_found(
    plant: Callable[[Records], None], level: str, fragment: str
) -> None:
    records = clean()
    plant(records)
    lines = told(examine(records, MASKS), level)
    assert any(fragment in line for line in lines), lines


def test_structures_that_no_mask_holds_are_named() -> None:
    records = [replace(one, read_mask=lambda: mask(0)) for one in clean()]
    assert any("No image shows b" in line for line in told(examine(records, MASKS), "warning"))


def test_black_slices_are_no_copies_of_one_another() -> None:
    records = clean()
    for number in (0, 30, 50):
        change(number, read_image=constant(0))(records)
    assert not any("copies" in line for line in told(examine(records), "error"))


@pytest.mark.parametrize(
    ("sections", "fragment"),
    [
        ({"training": {"local_steps": 2, "batch_size": 91}}, "training.batch_size = 91 is more"),
        (
            {
                "privacy": {
                    "unit": "patient",
                    "sample_rate": 0.5,
                    "expected_batch_size": 46,
                    "noise_multiplier": 1.0,
                },
            },
            "privacy.expected_batch_size = 46 is more than the 45 patients",
        ),
        ({"data": {"image_size": 32, "dimensions": 3}}, "Set data.dimensions = 2"),
    ],
)
def test_data_that_is_too_little_or_of_another_kind_is_an_error(
    sections: dict[str, Any], fragment: str
) -> None:
    result = examine(clean(), make_study(**sections))
    assert any(fragment in line for line in told(result, "error")), result.findings


def site(*stores: Path, **policy: Any) -> SiteConfig:
    table = {"name": "clinic", "data": {"stores": [str(path) for path in stores]}}
    return SiteConfig.model_validate({**table, "policy": policy})


def store(records: Records, parent: Path, study: StudyConfig = CLASSES) -> Path:
    return prepare_store(
        dataset(records), study.task, study.data, parent=parent, pseudonym_key=b"key"
    ).folder


@pytest.mark.parametrize("study", [CLASSES, MASKS], ids=["classes", "masks"])
def test_clean_store_gives_neither_errors_nor_warnings(tmp_path: Path, study: StudyConfig) -> None:
    result = examine_site(site(store(clean(), tmp_path, study)), study)
    assert {one.level for one in result.findings} == {"ok"}, result.findings
    assert result.num_images == NUM


def test_store_is_held_to_its_hashes_and_its_copies_are_found(tmp_path: Path) -> None:
    records = clean()
    copy(0, 30)(records)
    folder = store(records, tmp_path)
    assert any(
        "on both sides" in line for line in told(examine_site(site(folder), CLASSES), "error")
    )
    images = folder / "images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 255
    images.write_bytes(content)
    lines = told(examine_site(site(folder), CLASSES), "error")
    assert any("is not what was prepared" in line for line in lines)


def test_stores_of_another_study_and_missing_ones_are_one_error(tmp_path: Path) -> None:
    [finding] = examine_site(site(store(clean(), tmp_path)), MASKS).findings
    assert finding.level == "error"
    assert "Prepare the data for this study" in finding.text
    [finding] = examine_site(site(tmp_path / "nothing"), CLASSES).findings
    assert "found none" in finding.text


def test_policy_says_how_many_patients_a_figure_needs(tmp_path: Path) -> None:
    folder = store(clean(), tmp_path)
    lines = told(examine_site(site(folder, min_patients_per_count=12), CLASSES), "warning")
    assert any("fewer than 12 held-out patients" in line for line in lines), lines


def test_two_workers_find_what_one_finds() -> None:
    records = clean()
    copy(0, 30)(records)
    change(9, read_image=constant(0))(records)
    one = examine_dataset(dataset(records), MASKS)
    assert examine_dataset(dataset(records), MASKS, workers=2) == one
