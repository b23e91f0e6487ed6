import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.chase_db1 import load_chase_db1


def _write(root: Path, *names: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (20, 19), (90, 40, 20)).save(root / f"{name}.jpg")
        for column, observer in enumerate(("1stHO", "2ndHO")):
            mask = np.zeros((19, 20), dtype=np.uint8)
            mask[:, column] = 255
            Image.fromarray(mask).convert("1").save(root / f"{name}_{observer}.png")
    return root


def test_chase_db1_keeps_both_eyes_of_a_child_together(tmp_path: Path) -> None:
    dataset = load_chase_db1(_write(tmp_path / "CHASEDB1", "Image_02R", "Image_01R", "Image_01L"))
    assert [r.record_id for r in dataset.records] == ["Image_01L", "Image_01R", "Image_02R"]
    assert [r.patient_id for r in dataset.records] == ["01", "01", "02"]
    assert [r.columns["eye"] for r in dataset.records] == ["left", "right", "right"]
    assert dataset.records[0].source == "Image_01L.jpg"
    assert (dataset.classes, dataset.structures) == ((), ("vessel",))


@pytest.mark.parametrize(("observer", "column"), [(1, 0), (2, 1)])
def test_chase_db1_takes_the_masks_of_one_observer(
    tmp_path: Path, observer: int, column: int
) -> None:
    dataset = load_chase_db1(_write(tmp_path, "Image_01L"), observer)  # type: ignore[arg-type]
    read_mask = dataset.records[0].read_mask
    assert read_mask is not None
    mask = read_mask()
    assert set(np.flatnonzero(mask.any(axis=0))) == {column}
    assert mask.max() == 1


def test_chase_db1_has_another_digest_for_another_observer(tmp_path: Path) -> None:
    root = _write(tmp_path, "Image_01L")
    # Even where both drew the same.
    (root / "Image_01L_2ndHO.png").write_bytes((root / "Image_01L_1stHO.png").read_bytes())
    assert load_chase_db1(root, 1).digest != load_chase_db1(root, 2).digest
    with pytest.raises(DataError, match="observer 1 or 2"):
        load_chase_db1(root, 3)  # type: ignore[arg-type]


def test_chase_db1_surfaces_missing_images_and_warns_of_missing_masks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write(tmp_path, "Image_01L", "Image_01R")
    (root / "Image_01L.jpg").unlink()
    (root / "Image_01R_1stHO.png").unlink()
    Image.new("L", (4, 4)).save(root / "overview.png")
    with caplog.at_level(logging.WARNING):
        left, right = load_chase_db1(root).records
    with pytest.raises(UnreadableImageError, match=r"Expected Image_01L\.jpg"):
        left.read_image()
    assert right.read_mask is None
    assert "1 picture(s) are not named as in CHASE_DB1" in caplog.text
    assert "1 image(s) have no mask of the 1st observer" in caplog.text


def test_real_chase_db1_has_the_published_counts(
    real_chase_db1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Its README: 8 children, 16 images of 999x960, 1-bit masks of two observers.
    first, second = load_chase_db1(real_chase_db1), load_chase_db1(real_chase_db1, 2)
    assert caplog.text == ""
    assert len(first.records) == 16
    assert Counter(r.patient_id for r in first.records) == {
        f"{child:02d}": 2 for child in (1, 2, 3, 4, 5, 8, 9, 12)
    }
    agreement = []
    for one, other in zip(first.records, second.records, strict=True):
        assert one.read_mask is not None
        assert other.read_mask is not None
        a, b = one.read_mask(), other.read_mask()
        assert a.shape == b.shape == one.read_image().shape[:2] == (960, 999)
        agreement.append(2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum())))
    # Two people draw the same vessels: an inverted or shifted mask would agree far less.
    assert 0.7 < np.mean(agreement) < 0.9


def test_real_chase_db1_vessels_are_darker_than_their_surroundings(real_chase_db1: Path) -> None:
    for record in load_chase_db1(real_chase_db1).records:
        assert record.read_mask is not None
        green, mask = record.read_image()[..., 1], record.read_mask()
        # Beside a vessel, not anywhere: the light falls off towards the rim.
        near = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(15)))
        assert green[mask == 1].mean() < green[(near == 1) & (mask == 0)].mean()
