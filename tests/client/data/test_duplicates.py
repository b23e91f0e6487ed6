"""Perceptual hashes: pictures that look alike are near one another, others are far apart."""

import numpy as np
from scipy.ndimage import gaussian_filter

from medfed.client.data.duplicates import MAX_DISTANCE, nearly_same, same_content
from medfed.client.data.facts import look_of


def picture(number: int) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(number).normal(size=(40, 48)), 4)
    return np.uint8(255 * (smooth - smooth.min()) / (smooth.max() - smooth.min()))


def test_same_content_is_grouped_and_what_has_none_is_left_out() -> None:
    assert same_content(["x", None, "y", "x", None, "z", "x"]) == [[0, 3, 6]]


def test_lookalikes_are_found_within_the_distance_and_no_further() -> None:
    look = look_of(picture(1))
    assert look is not None
    rng = np.random.default_rng(0)
    for distance in (0, 1, MAX_DISTANCE, MAX_DISTANCE + 1):
        for _ in range(20):
            bits = np.unpackbits(look)
            bits[rng.choice(256, distance, replace=False)] ^= 1
            found = nearly_same({0: look, 1: np.packbits(bits)})
            assert found == ([(0, 1)] if distance <= MAX_DISTANCE else [])


def test_looks_of_different_pictures_are_far_apart() -> None:
    looks = {number: look_of(picture(number)) for number in range(300)}
    assert nearly_same({n: look for n, look in looks.items() if look is not None}) == []
    assert look_of(np.full((20, 20), 5, np.uint8)) is None
