"""From stored images to batches: patches, views, columns.

Shapes: B images, C channels, *S spatial.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.client.batches import BatchLoader, cut_patches, encode_column
from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.common.study import ColumnSection, StudyConfig
from medfed.common.tasks import make_task

CPU = torch.device("cpu")


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """An image whose every voxel says where it is, uint8 [1, *S]."""
    flat = np.arange(np.prod(shape)) % 251
    return flat.reshape(1, *shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(40, 50), (20, 24, 22)])
def test_cut_patches_are_parts_of_the_image_and_its_mask(shape: tuple[int, ...]) -> None:
    image, mask = coordinates(shape)[None], np.zeros((1, *shape), dtype=np.uint8)
    mask[0] = image[0, 0] // 25
    rng = np.random.default_rng(0)
    patches, masks = cut_patches(
        np.repeat(image, 20, axis=0), np.repeat(mask, 20, axis=0), [shape] * 20, 16, rng
    )
    assert masks is not None
    assert patches.shape == (20, 1, *[16] * len(shape))
    assert np.array_equal(masks, patches[:, 0] // 25)
    windows = np.lib.stride_tricks.sliding_window_view(image[0, 0], [16] * len(shape))
    flat = windows.reshape(-1, 16 ** len(shape))
    for patch in patches.reshape(20, -1):
        assert (flat == patch).all(axis=1).any()


def test_cut_patches_half_of_the_time_hold_the_structure() -> None:
    mask = np.zeros((1, 200, 200), dtype=np.uint8)
    mask[0, 7, 190] = 1
    images = np.zeros((400, 1, 200, 200), dtype=np.uint8)
    _, masks = cut_patches(
        images, np.repeat(mask, 400, axis=0), [(200, 200)] * 400, 16, np.random.default_rng(1)
    )
    assert masks is not None
    holding = int(masks.any(axis=(1, 2)).sum())
    # Half by choice, and hardly ever by chance: Binomial(400, 1/2), 4.5 standard deviations.
    assert abs(holding - 200) < 45 + 10


def test_cut_patches_reach_every_corner_and_pad_small_images_with_zeros() -> None:
    image = np.full((1, 1, 30, 30), 9, dtype=np.uint8)
    image[..., 20:, :] = 0
    image[..., 12:] = 0  # the true image is 20 x 12, the rest is padding
    patches, masks = cut_patches(
        np.repeat(image, 50, axis=0), None, [(20, 12)] * 50, 16, np.random.default_rng(2)
    )
    assert masks is None
    assert (patches[:, 0, :, :12] == 9).all()
    assert not patches[:, 0, :, 12:].any()


def make_set(*, views: int = 0, columns: dict[str, tuple[str, ...]] | None = None) -> ImageSet:
    channels = max(1, views)
    images = np.random.default_rng(3).integers(1, 255, (3, channels, 16, 16), dtype=np.uint8)
    store = Store(
        folder=Path(),
        key="",
        classes=("a", "b"),
        mode="multiclass",
        images_NCHW=images,
        masks_NHW=None,
        labels=np.array([0, 1, 0]),
        patients=("p", "q", "r"),
        splits=("",) * 3,
        columns=columns or {},
        reports=("",) * 3,
        record_ids=("1", "2", "3"),
        num_quarantined=0,
        views=("frontal", "lateral")[:views],
        present=np.array([[1, 1], [0, 1], [1, 0]], dtype=np.uint8) if views else None,
    )
    return ImageSet((store,), np.zeros(3, dtype=np.int64), np.arange(3))


def make_study(**sections: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "batches"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 1},
            **sections,
        }
    )


def test_a_missing_view_is_zero_after_standardisation() -> None:
    study = make_study(data={"image_size": 16, "views": ["frontal", "lateral"]})
    batch = BatchLoader(make_set(views=2), make_task(study), study, CPU).evaluation_batch(
        np.arange(3)
    )
    [images] = batch.inputs
    assert images.shape == (3, 2, 16, 16)
    empty = (images == 0).all(dim=3).all(dim=2)
    assert empty.tolist() == [[False, False], [True, False], [False, True]]


def test_columns_reach_the_model_with_what_is_known_of_them() -> None:
    tabular = {"age": {"mean": 50, "std": 10}, "sex": {"values": ["female", "male"]}}
    study = make_study(data={"image_size": 16, "tabular": tabular})
    columns = {"age": ("70", "", "nan"), "sex": ("male", "unknown", "female")}
    loader = BatchLoader(make_set(columns=columns), make_task(study), study, CPU)
    images, present, numbers = loader.evaluation_batch(np.array([2, 0, 1])).inputs
    assert images.shape == (3, 1, 16, 16)
    assert present.tolist() == [[1.0]] * 3
    assert numbers.tolist() == [[0, 0, 1, 0], [2, 1, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-inf"])
def test_encode_column_takes_what_is_no_number_as_missing(text: str) -> None:
    assert encode_column((text,), ColumnSection(mean=1.0, std=2.0)).tolist() == [[0.0, 0.0]]


def test_gathering_from_two_stores_keeps_order_and_pads_the_smaller() -> None:
    one, other = make_set().stores[0], make_set().stores[0]
    small = Store(**{**vars(other), "images_NCHW": other.images_NCHW[:, :, :10, :12]})
    data = ImageSet((one, small), np.array([0, 1, 0, 1]), np.array([2, 0, 1, 2]))
    images = data.images_NCHW(np.array([1, 0, 3]))
    assert images.shape == (3, 1, 16, 16)
    assert np.array_equal(images[0, :, :10, :12], small.images_NCHW[0])
    assert not images[0, :, 10:].any()
    assert np.array_equal(images[1], one.images_NCHW[2])
    assert np.array_equal(images[2, :, :10, :12], small.images_NCHW[2])
