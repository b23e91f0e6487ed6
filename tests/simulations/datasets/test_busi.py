import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.busi import load_busi


def _write_image(root: Path, label: str, number: int, seed: int = 0) -> Path:
    (root / label).mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed or number).integers(0, 256, (12, 10), dtype=np.uint8)
    path = root / label / f"{label} ({number}).png"
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(path)
    return path


def _write_mask(image: Path, row: int | None, ending: str = "_mask", mode: str = "1") -> None:
    mask = np.zeros((12, 10), dtype=np.uint8)
    if row is not None:
        mask[row] = 255
    path = image.with_name(f"{image.stem}{ending}.png")
    Image.fromarray(mask).convert(mode).save(path)


def test_busi_orders_by_class_and_number(tmp_path: Path) -> None:
    root = tmp_path / "Dataset_BUSI_with_GT"
    for label, number in (("malignant", 1), ("benign", 10), ("benign", 9), ("normal", 2)):
        _write_mask(_write_image(root, label, number), None)
    dataset = load_busi(tmp_path)
    assert [r.record_id for r in dataset.records] == [
        "normal (2)",
        "benign (9)",
        "benign (10)",
        "malignant (1)",
    ]
    assert [r.labels for r in dataset.records] == [
        ("normal",),
        ("benign",),
        ("benign",),
        ("malignant",),
    ]
    assert dataset.records[1].source == "benign/benign (9).png"
    assert dataset.records[1].read_image().shape == (12, 10)


def test_busi_unites_masks_whatever_their_mode(tmp_path: Path) -> None:
    image = _write_image(tmp_path, "benign", 4)
    _write_mask(image, 2, mode="1")
    _write_mask(image, 5, "_mask_1", mode="RGBA")
    _write_mask(image, 7, "_mask_2", mode="RGB")
    (record,) = load_busi(tmp_path).records
    assert record.read_mask is not None
    mask = record.read_mask()
    assert mask.dtype == np.uint8
    assert set(np.flatnonzero(mask.all(axis=1))) == {2, 5, 7}
    assert mask.sum() == 3 * 10
    Image.new("1", (5, 5)).save(image.with_name(f"{image.stem}_mask_2.png"))
    with pytest.raises(UnreadableImageError, match=r"benign \(4\)_mask_2\.png \[5, 5\]"):
        record.read_mask()


def test_busi_gives_the_same_picture_one_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label, number, seed in (
        ("benign", 1, 7),
        ("benign", 2, 7),
        ("malignant", 3, 7),
        ("malignant", 4, 8),
        ("normal", 5, 9),
    ):
        _write_mask(_write_image(tmp_path, label, number, seed), None)
    # The same pixels in another file.
    path = tmp_path / "benign" / "benign (2).png"
    Image.open(path).convert("L").save(path, compress_level=0)
    with caplog.at_level(logging.WARNING):
        records = load_busi(tmp_path).records
    assert {r.record_id: r.patient_id for r in records} == {
        "normal (5)": "normal (5)",
        "benign (1)": "benign (1)",
        "benign (2)": "benign (1)",
        "malignant (3)": "benign (1)",
        "malignant (4)": "malignant (4)",
    }
    assert "benign (1) and benign (2) and malignant (3) are the same picture" in caplog.text


def test_busi_surfaces_missing_images_and_warns_of_missing_masks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _write_image(tmp_path, "benign", 1)
    _write_mask(first, 3)
    first.unlink()
    _write_image(tmp_path, "benign", 2)
    Image.new("L", (4, 4)).save(tmp_path / "benign" / "malignant (3).png")
    with caplog.at_level(logging.WARNING):
        missing, without = load_busi(tmp_path).records
    with pytest.raises(UnreadableImageError, match=r"Expected benign \(1\)\.png"):
        missing.read_image()
    assert without.read_mask is None
    assert "1 image(s) have no mask" in caplog.text
    assert "1 picture(s) are not named after their folder's class" in caplog.text


def test_real_busi_has_the_published_counts(
    real_busi: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_busi(real_busi)
    # Its README: 27 images, 29 masks; one picture twice, with two labels.
    assert len(dataset.records) == 27
    assert Counter(label for r in dataset.records for label in r.labels) == {
        "normal": 5,
        "benign": 13,
        "malignant": 9,
    }
    assert len(list(real_busi.rglob("*_mask*.png"))) == 29
    patients = {r.record_id: r.patient_id for r in dataset.records}
    assert patients["benign (433)"] == patients["malignant (145)"]
    assert len(set(patients.values())) == 26
    assert caplog.text.count("same picture") == 1
    masks = {r.record_id: r.read_mask() for r in dataset.records if r.read_mask is not None}
    assert len(masks) == 27
    assert {name for name, mask in masks.items() if not mask.any()} == {
        name for name in patients if name.startswith("normal")
    }
    assert all(
        mask.shape == r.read_image().shape for r in dataset.records for mask in [masks[r.record_id]]
    )


def test_real_busi_unites_the_two_lesions_of_one_image(real_busi: Path) -> None:
    records = {r.record_id: r for r in load_busi(real_busi).records}
    for name in ("benign (4)", "benign (83)"):
        files = sorted((real_busi / "Dataset_BUSI_with_GT" / "benign").glob(f"{name}_mask*"))
        assert len(files) == 2
        sizes = [int((np.asarray(Image.open(file).convert("L")) > 0).sum()) for file in files]
        read_mask = records[name].read_mask
        assert read_mask is not None
        # The two do not overlap.
        assert read_mask().sum() == sum(sizes)


def test_real_busi_lesions_are_darker_than_their_surroundings(real_busi: Path) -> None:
    darker = []
    for record in load_busi(real_busi).records:
        if record.labels != ("normal",):
            assert record.read_mask is not None
            image, mask = record.read_image().astype(float), record.read_mask()
            rows, columns = np.nonzero(mask)
            box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            inside, outside = image[mask == 1], image[box][mask[box] == 0]
            darker.append(inside.mean() < outside.mean())
    assert np.mean(darker) > 0.8
