"""Burnt-in text: found where it was written, and not seen where there is only anatomy."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medfed.client.data.deidentification.text_detection import find_text
from medfed.client.data.deidentification.text_marks import Box, merged

Picture = npt.NDArray[np.uint8]


def _anatomy(size: int = 400, seed: int = 0) -> Picture:
    """Smooth structures with bright and dark ribs and noise, and no writing."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=(size, size)), 12)
    y, x = np.mgrid[:size, :size]
    ribs = 40 * np.sin((y + x**2 / size) / 12)
    picture = 110 + 300 * soft + ribs + rng.normal(scale=4, size=(size, size))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _written(picture: Picture, text: str, place: tuple[int, int], size: int, ink: int) -> Picture:
    image = Image.fromarray(picture.copy())
    ImageDraw.Draw(image).text(place, text, fill=ink, font=ImageFont.load_default(size))
    return np.asarray(image)


def _covered(boxes: tuple[Box, ...], ink: npt.NDArray[np.bool_]) -> float:
    inside = np.zeros_like(ink)
    for box in boxes:
        inside[box.top : box.bottom, box.left : box.right] = True
    return float((ink & inside).sum() / ink.sum())


@pytest.mark.parametrize("size", [12, 16, 24, 40])
@pytest.mark.parametrize("ground", ["black", "white", "anatomy"])
def test_find_text_covers_a_name_and_a_number(size: int, ground: str) -> None:
    picture = {
        "black": np.zeros((400, 400), np.uint8),
        "white": np.full((400, 400), 255, np.uint8),
        "anatomy": _anatomy(),
    }[ground]
    ink = 0 if ground == "white" else 255
    written = _written(picture, "MUELLER ANNA 12345", (10, 20), size, ink)
    changed = np.abs(written.astype(int) - picture) > 60

    boxes = find_text(written)

    assert _covered(boxes, changed) > 0.98
    area = sum((box.bottom - box.top) * (box.right - box.left) for box in boxes)
    assert area < 0.35 * written.size


@pytest.mark.parametrize("seed", range(5))
def test_find_text_sees_none_in_anatomy(seed: int) -> None:
    assert find_text(_anatomy(seed=seed)) == ()


def test_find_text_sees_none_in_flat_tiny_and_noisy_pictures() -> None:
    rng = np.random.default_rng(0)
    assert find_text(np.zeros((200, 200), np.uint8)) == ()
    assert find_text(np.full((3, 2), 255, np.uint8)) == ()
    assert find_text(rng.integers(0, 256, (200, 200), dtype=np.uint8)) == ()


def test_find_text_takes_a_lone_side_marker_for_no_line() -> None:
    assert find_text(_written(np.zeros((300, 300), np.uint8), "L", (20, 20), 40, 255)) == ()


def test_merged_keeps_far_boxes_apart_and_unites_overlapping_ones() -> None:
    near = [Box(0, 0, 10, 50), Box(0, 40, 10, 90), Box(0, 80, 10, 120)]
    cross = [Box(50, 0, 60, 100), Box(0, 200, 100, 210)]
    assert sorted(merged([*near, *cross])) == [Box(0, 0, 10, 120), *reversed(cross)]


def test_find_text_covers_the_identity_burnt_into_a_real_ultrasound(dicom_folder: Path) -> None:
    picture = pydicom.dcmread(
        dicom_folder / "deid" / "ultrasounds" / "GREYSCALE_IMAGE.dcm"
    ).pixel_array
    # The top line of the screen: name, id, birth date, hospital, date and time.
    header = np.zeros(picture.shape, bool)
    header[:24] = picture[:24] > 120

    assert header.sum() > 2000
    assert _covered(find_text(picture), header) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "num_least"),
    [
        ("iu_xray_openi/images/**/*.png", 5),
        ("chase_db1/CHASEDB1/*.jpg", 10),
        ("lgg_mri_kaggle_3m/**/*[0-9].tif", 90),
        ("ham10000_200x150/images/**/*.jpg", 1000),
    ],
)
def test_find_text_raises_no_false_alarm_on_real_images(
    real_data: Path, pattern: str, num_least: int
) -> None:
    paths = sorted(path for path in real_data.glob(pattern) if path.is_file())
    assert len(paths) >= num_least
    alarms = [path for path in paths if find_text(np.asarray(Image.open(path).convert("L")))]
    assert alarms == []
