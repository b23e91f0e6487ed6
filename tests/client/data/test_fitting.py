"""What a store holds of an image: shapes, channels, geometry, and errors that name the way out."""

import numpy as np
import pytest

from medfed.client.data.fitting import fit_image, fit_mask, fit_views, target_size
from medfed.common.errors import UnreadableImageError
from medfed.common.study import DataSection


def section(**values: object) -> DataSection:
    return DataSection.model_validate({"image_size": 16, **values})


@pytest.mark.parametrize("channels", [2, 4])
def test_fit_image_keeps_sequences_apart(channels: int) -> None:
    pixels = np.stack([np.full((20, 30), 40.0 * (i + 1)) for i in range(channels)], axis=-1)
    fitted = fit_image(pixels, section(channels=channels), "x")
    assert fitted.shape == (channels, 16, 16)
    for i, plane in enumerate(fitted):
        assert (plane == 40 * (i + 1)).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fit_image_repeats_grey_over_channels(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16))
    fitted = fit_image(pixels, section(channels=channels), "x")
    assert fitted.shape == (channels, 16, 16)
    assert all(np.array_equal(plane, pixels) for plane in fitted)


@pytest.mark.parametrize(("held", "wanted"), [(4, 3), (2, 1), (3, 2), (4, 1)])
def test_fit_image_refuses_other_channels_than_the_studys(held: int, wanted: int) -> None:
    with pytest.raises(UnreadableImageError, match=f"expected {wanted} channel.* got {held}"):
        fit_image(np.zeros((20, 20, held)), section(channels=wanted), "x")


def test_fit_image_with_patches_keeps_the_size_or_the_proportions() -> None:
    pixels = np.zeros((30, 90), dtype=np.uint8)
    assert fit_image(pixels, section(fit="patch"), "x").shape == (1, 30, 90)
    assert fit_image(pixels, section(fit="patch", stored_size=45), "x").shape == (1, 15, 45)


def test_fit_image_of_a_volume_resamples_to_cubic_voxels() -> None:
    study = section(dimensions=3, fit="patch", spacing_mm=1.0)
    ramp = np.broadcast_to(np.arange(10.0)[:, None, None] * 20, (10, 8, 6))
    fitted = fit_image(ramp, study, "x", spacing_mm=(2.0, 1.0, 0.5))
    assert fitted.shape == (1, 20, 8, 3)
    # A ramp stays a ramp, half as steep; away from the ends trilinear resampling is exact.
    middle = fitted[0, 2:-2, 4, 1].astype(float)
    assert np.abs(np.diff(middle) - 10).max() <= 1
    assert target_size((10, 8, 6), study, "x", (2.0, 1.0, 0.5)) == (20, 8, 3)


def test_fit_image_of_a_volume_without_voxel_size_is_refused() -> None:
    study = section(dimensions=3, fit="patch", spacing_mm=1.0)
    for spacing in (None, (1.0, 1.0), (0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)):
        with pytest.raises(UnreadableImageError, match=r"size of a voxel.*spacing_mm"):
            fit_image(np.zeros((4, 4, 4)), study, "x", spacing_mm=spacing)


def test_fit_image_refuses_a_volume_in_a_study_of_images_and_the_reverse() -> None:
    with pytest.raises(UnreadableImageError, match=r"\[H, W\]"):
        fit_image(np.zeros((4, 4, 4, 1)), section(), "x")
    with pytest.raises(UnreadableImageError, match=r"\[D, H, W\]"):
        fit_image(np.zeros((4, 4)), section(dimensions=3), "x")


def test_fit_mask_never_invents_an_index() -> None:
    mask = np.zeros((60, 45), dtype=np.uint8)
    mask[10:30, 5:20] = 7
    mask[35:50, 25:40] = 2
    fitted = fit_mask(mask, section(), "x", (20, 15), (16, 16))
    assert fitted.shape == (16, 16)
    assert set(np.unique(fitted)) == {0, 2, 7}


def test_fit_mask_of_a_volume_never_invents_an_index() -> None:
    mask = np.zeros((9, 9, 9), dtype=np.uint8)
    mask[3:6, 3:6, 3:6] = 5
    fitted = fit_mask(mask, section(dimensions=3), "x", (9, 9, 9), (18, 9, 5))
    assert fitted.shape == (18, 9, 5)
    assert set(np.unique(fitted)) == {0, 5}
    assert (fitted[6:12, 3:6, 2] == 5).all()


def test_fit_mask_refuses_another_geometry() -> None:
    with pytest.raises(UnreadableImageError, match="different geometry"):
        fit_mask(np.zeros((60, 40), np.uint8), section(), "x", (20, 20), (16, 16))
    with pytest.raises(UnreadableImageError, match="different geometry"):
        fit_mask(np.zeros((9, 9, 8), np.uint8), section(dimensions=3), "x", (9, 9, 9), (16, 16, 16))
    with pytest.raises(UnreadableImageError, match="2 dimensions, got 3"):
        fit_mask(np.zeros((9, 9, 8), np.uint8), section(), "x", (9, 9), (16, 16))


def test_fit_views_leaves_room_for_the_one_that_is_missing() -> None:
    study = section(views=["frontal", "lateral"], channels=3)
    lateral = np.full((20, 20), 9)
    fitted, present = fit_views({"lateral": lateral}, study, "x")
    assert fitted.shape == (6, 16, 16)
    assert present.tolist() == [0, 1]
    assert not fitted[:3].any()
    assert (fitted[3:] == 9).all()
    with pytest.raises(UnreadableImageError, match="frontal, lateral"):
        fit_views({}, study, "x")
