from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.common.study import DataSection
from medfed.simulations.examples.pictures import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    draw_outlines,
    shown_image,
    view_pictures,
)


def image_set(
    pixels_NC: np.ndarray,
    shapes: list[list[int]] | None = None,
    present: list[list[int]] | None = None,
) -> ImageSet:
    """One store in memory."""
    number = len(pixels_NC)
    texts = tuple("" for _ in range(number))
    store = Store(
        folder=Path(),
        key="",
        classes=(),
        mode="multiclass",
        images_NCHW=pixels_NC.astype(np.uint8),
        masks_NHW=None,
        labels=np.zeros((number, 0), np.uint8),
        patients=texts,
        splits=texts,
        columns={},
        reports=texts,
        record_ids=texts,
        num_quarantined=0,
        shapes=None if shapes is None else np.array(shapes),
        present=None if present is None else np.array(present, dtype=np.uint8),
    )
    return ImageSet((store,), np.zeros(number, np.int64), np.arange(number))


def test_three_channels_are_colours_and_any_other_number_shows_the_first() -> None:
    pixels = np.zeros((1, 4, 20, 20))
    pixels[0, :, :, :] = np.array([40, 80, 120, 160])[:, None, None]
    for channels, colour in ((3, [40, 80, 120]), (2, [40] * 3), (4, [40] * 3)):
        section = DataSection(channels=channels)
        shown = shown_image(image_set(pixels[:, :channels]), 0, section)
        [picture] = view_pictures(shown, section)
        assert picture.shape == (320, 320, 3)
        assert (picture == colour).all()
        assert shown.note == ""


def test_views_are_pictures_of_their_own_and_missing_ones_are_named() -> None:
    pixels = np.zeros((1, 2, 16, 16))
    pixels[0, 0] = 200
    section = DataSection(views=("frontal", "lateral"))
    shown = shown_image(image_set(pixels, present=[[1, 0]]), 0, section)
    frontal, lateral = view_pictures(shown, section)
    assert (frontal == 200).all()
    assert (lateral == 0).all()
    assert shown.note == "from the left: frontal, lateral (missing)"


def test_padding_is_not_shown_and_large_images_are_made_smaller() -> None:
    pixels = np.full((1, 1, 900, 900), 255)
    pixels[0, :, 600:] = 0
    section = DataSection(fit="patch", stored_size=900)
    shown = shown_image(image_set(pixels, shapes=[[600, 900]]), 0, section)
    [picture] = view_pictures(shown, section)
    assert picture.shape == (341, 512, 3)
    assert picture.min() == 255


def test_volume_shows_the_axial_slice_with_most_of_the_structures() -> None:
    # Voxels say where they are: x + 10 y in the slice z = 6, which holds most of the structure.
    x, y, z = np.meshgrid(np.arange(8), np.arange(9), np.arange(10), indexing="ij")
    pixels = np.where(z == 6, x + 10 * y, 200)[None, None]
    structures = np.zeros((1, 8, 9, 10), dtype=bool)
    structures[0, 2:6, 3:6, 6] = True
    structures[0, 2, 2, 1] = True
    section = DataSection(dimensions=3)
    shown = shown_image(image_set(pixels), 0, section, structures)
    assert shown.note == "axial slice 7 of 10"
    plane = shown.plane(shown.pixels)[0]
    assert plane.shape == (9, 8)
    # Front (large y) at the top, the patient's right (large x) on the viewer's left.
    assert plane[0, 0] == 7 + 80
    assert plane[-1, -1] == 0


def test_volume_without_a_structure_shows_its_middle() -> None:
    section = DataSection(dimensions=3)
    pixels = np.zeros((1, 1, 6, 6, 11))
    shown = shown_image(image_set(pixels), 0, section, np.zeros((1, 6, 6, 11), dtype=bool))
    assert shown.note == "axial slice 6 of 11"


@pytest.mark.parametrize("side", [16, 64])
def test_outlines_follow_the_edge_inside_the_structure(side: int) -> None:
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    black = np.zeros((320, 320, 3), dtype=np.uint8)
    drawn = draw_outlines(black, [mask], [])
    inside = np.kron(mask, np.ones((320 // side, 320 // side), dtype=bool))
    painted = (drawn == TRUTH_COLOUR).all(axis=2)
    assert painted.any()
    assert not painted[~inside].any()
    rows = np.flatnonzero(inside.any(axis=1))
    first, last, middle = rows[0], rows[-1], 320 * 3 // 8
    assert painted[[first, last], middle].all()
    assert not painted[middle, middle]


def test_prediction_is_dashed_so_that_the_truth_shows_below_it() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    drawn = draw_outlines(np.zeros((320, 320, 3), dtype=np.uint8), [mask], [mask])
    orange = (drawn == PREDICTION_COLOUR).all(axis=2).sum()
    blue = (drawn == TRUTH_COLOUR).all(axis=2).sum()
    assert 0.3 < orange / (orange + blue) < 0.7


def test_thin_structures_of_images_in_their_own_size_are_not_filled() -> None:
    mask = np.zeros((320, 320), dtype=bool)
    mask[100:104, 20:300] = True
    drawn = draw_outlines(np.zeros((320, 320, 3), dtype=np.uint8), [mask], [])
    painted = drawn.any(axis=2)
    assert painted[99:105, 150].tolist() == [False, True, False, False, True, False]
