"""Pictures: what is drawn where, and that nothing is drawn where there is nothing."""

import numpy as np
import pytest

from medfed.simulations.explaining.load import Examination
from medfed.simulations.explaining.pictures import (
    outline,
    overlay,
    picture_of,
    scale_colours,
    side_by_side,
    structure_colour,
    three_slices,
)
from medfed.simulations.explaining.plates import centre_of, highest_point, map_picture


def grey(value: int, *shape: int) -> np.ndarray:
    return np.full((*shape, 3), value, dtype=np.uint8)


def test_picture_of_shows_three_channels_as_colours_and_others_as_grey() -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    np.testing.assert_array_equal(picture_of(pixels), np.moveaxis(pixels, 0, 2))
    two = picture_of(pixels[:2])
    np.testing.assert_array_equal(two[..., 0], np.rint(pixels[:2].mean(axis=0)))
    assert (two[..., 0] == two[..., 2]).all()
    assert picture_of(pixels, 2.0).shape == (8, 10, 3)


def test_overlay_leaves_the_picture_where_the_map_is_zero() -> None:
    picture, values = grey(90, 8, 8), np.zeros((8, 8), dtype=np.float32)
    values[2, 5] = 1.0
    laid = overlay(picture, values)
    changed = (laid != picture).any(axis=2)
    assert np.argwhere(changed).tolist() == [[2, 5]]
    # The end of viridis is yellow: much red and green, little blue.
    red, green, blue = laid[2, 5].astype(int)
    assert min(red, green) > 150 > 90 > blue


def test_scale_grows_lighter_from_end_to_end() -> None:
    rgb = np.array([list(bytes.fromhex(colour[1:])) for colour in scale_colours()])
    lightness = rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_outline_draws_the_border_and_neither_inside_nor_outside() -> None:
    picture, margins = grey(50, 60, 60), -np.ones((2, 60, 60))
    margins[0, 20:40, 15:45] = 1.0
    drawn = outline(picture, margins)
    line = (drawn == list(bytes.fromhex(structure_colour(0)[1:]))).all(axis=2)
    rows, columns = np.nonzero(line)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 41, 13, 46)
    assert (drawn[30, 30] == 50).all()
    assert (drawn[5, 5] == 50).all()
    assert not np.array_equal(picture, drawn)


def test_outline_of_nothing_is_the_picture() -> None:
    picture = grey(50, 30, 30)
    np.testing.assert_array_equal(outline(picture, -np.ones((1, 30, 30))), picture)


def test_three_slices_show_front_head_and_the_patient_s_right_as_radiologists_do() -> None:
    volume = np.zeros((4, 5, 6), dtype=np.uint8)
    right, front, head = 3, 4, 5
    volume[right, front, 2] = 1
    volume[right, 2, head] = 2
    volume[1, front, head] = 3
    axial, coronal, sagittal = three_slices(volume, (1, 2, 2))
    assert (axial.shape, coronal.shape, sagittal.shape) == ((5, 4), (6, 4), (6, 5))
    # Front at the top, the right on the left; head at the top; front on the left.
    assert axial[0, 0] == 1
    assert coronal[0, 0] == 2
    assert sagittal[0, 0] == 3


def test_side_by_side_centres_smaller_pictures_on_black() -> None:
    joined = side_by_side([grey(9, 10, 4), grey(7, 6, 5)])
    assert joined.shape == (10, 4 + 12 + 5, 3)
    assert (joined[:, :4] == 9).all()
    assert (joined[2:8, -5:] == 7).all()
    assert joined.sum() == 3 * (9 * 40 + 7 * 30)


def test_centre_of_lies_in_the_mask_even_of_a_ring() -> None:
    rows, columns = np.mgrid[:21, :21] - 10
    ring = np.hypot(rows, columns).round() == 8
    centre = centre_of(ring)
    assert centre is not None
    assert ring[centre]
    assert centre_of(np.zeros((3, 3), dtype=bool)) is None


def test_highest_point_is_where_a_volume_is_cut() -> None:
    values = np.zeros((4, 5, 6))
    values[3, 1, 2] = 1
    assert highest_point(values) == (3, 1, 2)


@pytest.mark.parametrize("present", [[1, 1], [0, 1]])
def test_map_picture_shows_the_views_that_are_there(present: list[int]) -> None:
    pixels = np.stack([np.full((8, 8), 40), np.full((8, 8), 80)]).astype(np.uint8)
    examination = Examination(
        ("frontal", "lateral"), pixels, np.array(present, dtype=np.uint8), {}, {}
    )
    picture = map_picture(examination, np.zeros((8, 8), dtype=np.float32))
    assert picture.shape == (448, 448 * sum(present) + 12 * (sum(present) - 1), 3)
    assert {int(picture[0, 0, 0]), int(picture[0, -1, 0])} == {40 if present[0] else 80, 80}
