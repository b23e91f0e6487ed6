"""Segmentation figures: MONAI's on every image, closed forms, and exact over any split."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from medfed.common.metrics import (
    add_sums,
    segmentation_metrics,
    segmentation_shapes,
    segmentation_sums,
)
from medfed.common.metrics.sums import MetricSums
from medfed.common.metrics.surfaces import hd95, surface_dice, surface_distances

NAMES = ("core", "rim")


def blobs(seed: int, shape: tuple[int, ...], *, empty: float = 0.0) -> np.ndarray:
    """Random smooth masks [*shape]; each of the first two axes' planes empty with a chance."""
    rng = np.random.default_rng(seed)
    sigma = (0, 0, *[1.5] * (len(shape) - 2))
    masks = ndimage.gaussian_filter(rng.normal(size=shape), sigma) > 0.05
    masks[rng.random(shape[:2]) < empty] = False
    return np.asarray(masks)


def sums_of(
    predicted: np.ndarray, truth: np.ndarray, *, spacing: float = 1.0, tolerance: float = 1.0
) -> MetricSums:
    losses = np.linspace(0, 2, len(truth))
    return segmentation_sums(predicted, truth, losses, spacing=spacing, tolerance=tolerance)


@pytest.mark.parametrize("shape", [(6, 2, 17, 12), (6, 2, 8, 9, 7)])
@pytest.mark.parametrize("empty", [0.0, 0.4])
@pytest.mark.parametrize("spacing", [1.0, 0.75])
def test_means_over_images_agree_with_monai(
    shape: tuple[int, ...], empty: float, spacing: float
) -> None:
    truth, predicted = blobs(1, shape, empty=empty), blobs(2, shape, empty=empty)
    figures = segmentation_metrics(sums_of(predicted, truth, spacing=spacing, tolerance=1.5), NAMES)
    y, y_pred = torch.from_numpy(truth), torch.from_numpy(predicted)
    both = predicted.any(axis=tuple(range(2, truth.ndim))) & truth.any(
        axis=tuple(range(2, truth.ndim))
    )
    for label, name in enumerate(NAMES):
        one = slice(label, label + 1)
        dice = compute_dice(y_pred[:, one], y[:, one], include_background=True, ignore_empty=False)
        present = compute_dice(y_pred[:, one], y[:, one], include_background=True)
        agreement = compute_surface_dice(
            y_pred[:, one], y[:, one], [1.5], include_background=True, spacing=spacing
        )
        assert figures[f"dice/{name}"] == pytest.approx(float(dice.mean()), abs=1e-6)
        assert figures[f"dice_present/{name}"] == pytest.approx(float(present.nanmean()), abs=1e-6)
        assert figures[f"surface_dice/{name}"] == pytest.approx(
            float(agreement.nanmean()), abs=1e-6
        )
        chosen = torch.from_numpy(both[:, label])
        assert figures[f"num_hd95/{name}"] == int(chosen.sum())
        distances = compute_hausdorff_distance(
            y_pred[chosen][:, one], y[chosen][:, one],
            include_background=True, percentile=95, spacing=spacing,
        )  # fmt: skip
        assert figures[f"hd95/{name}"] == pytest.approx(float(distances.mean()), abs=1e-5)
    for key in ("dice", "dice_present", "surface_dice", "hd95"):
        assert figures[key] == pytest.approx(np.mean([figures[f"{key}/{n}"] for n in NAMES]))


def test_pooled_figures_are_those_of_all_pixels_together() -> None:
    truth, predicted = blobs(3, (4, 2, 11, 11)), blobs(4, (4, 2, 11, 11))
    figures = segmentation_metrics(sums_of(predicted, truth), NAMES)
    for label, name in enumerate(NAMES):
        t, p = truth[:, label].ravel(), predicted[:, label].ravel()
        assert figures[f"iou/{name}"] == (t & p).sum() / (t | p).sum()
        assert figures[f"dice_pooled/{name}"] == 2 * (t & p).sum() / (t.sum() + p.sum())
        assert figures[f"sensitivity/{name}"] == (t & p).sum() / t.sum()
        assert figures[f"precision/{name}"] == (t & p).sum() / p.sum()
        errors = abs(
            truth[:, label].sum(axis=(1, 2)).astype(int)
            - predicted[:, label].sum(axis=(1, 2)).astype(int)
        )
        assert figures[f"volume_error/{name}"] == errors.sum() / t.sum()
    assert figures["loss"] == pytest.approx(1.0, abs=1e-6)
    assert figures["num_images"] == 4


def test_empty_masks_count_as_the_module_says() -> None:
    square = np.zeros((6, 6), dtype=bool)
    square[1:4, 1:4] = True
    nothing = np.zeros_like(square)
    cases = [(square, square), (square, nothing), (nothing, square), (nothing, nothing)]
    truth = np.stack([case[0] for case in cases])[:, None]
    predicted = np.stack([case[1] for case in cases])[:, None]
    figures = segmentation_metrics(sums_of(predicted, truth), ("lesion",))
    assert figures["dice"] == (1 + 0 + 0 + 1) / 4
    assert figures["dice_present"] == (1 + 0) / 2
    assert figures["surface_dice"] == pytest.approx(1 / 3, abs=1e-6)
    assert figures["hd95"] == 0.0
    assert (figures["num_hd95"], figures["missed"], figures["false_alarms"]) == (1, 1, 1)
    assert figures["detection_sensitivity"] == figures["detection_specificity"] == 0.5


def test_figures_without_any_structure_are_left_out() -> None:
    nothing = np.zeros((2, 1, 5, 5), dtype=bool)
    figures = segmentation_metrics(sums_of(nothing, nothing), ("lesion",))
    assert figures["dice"] == 1.0
    assert not {"hd95", "dice_present", "iou", "sensitivity", "precision", "volume_error"} & set(
        figures
    )
    assert segmentation_metrics(sums_of(nothing[:0], nothing[:0]), ("lesion",)) == {
        "num_images": 0.0
    }


@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 8), min_size=1, max_size=4), st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_sums_of_sites_in_any_order_equal_the_pooled_sums(
    seed: int, cuts: list[int], flat: bool
) -> None:
    shape = (9, 2, 7, 6) if flat else (9, 2, 5, 4, 6)
    truth, predicted = blobs(seed, shape, empty=0.3), blobs(seed + 1, shape, empty=0.3)
    losses = np.random.default_rng(seed).random(9)
    pooled = segmentation_sums(predicted, truth, losses, spacing=1.0, tolerance=1.0)
    edges = [0, *sorted(set(cuts)), 9]
    parts = [
        segmentation_sums(predicted[a:b], truth[a:b], losses[a:b], spacing=1.0, tolerance=1.0)
        for a, b in itertools.pairwise(edges)
    ]
    for order in (parts, parts[::-1]):
        total = add_sums(order)
        assert {n: v.tolist() for n, v in total.items()} == {
            n: v.tolist() for n, v in pooled.items()
        }
        assert segmentation_metrics(total, NAMES) == segmentation_metrics(pooled, NAMES)


def test_sum_shapes_are_those_of_the_sums_and_no_sum_is_negative() -> None:
    sums = sums_of(blobs(0, (3, 2, 8, 8)), blobs(1, (3, 2, 8, 8)))
    assert {name: array.shape for name, array in sums.items()} == segmentation_shapes(2)
    assert all(array.dtype == np.int64 and (array >= 0).all() for array in sums.values())


def plain_distances(one: np.ndarray, other: np.ndarray) -> list[float]:
    """The slow way: every surface pixel of `one` to every one of `other`."""

    def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
        steps = [s * np.eye(mask.ndim, dtype=int)[a] for a in range(mask.ndim) for s in (1, -1)]
        padded = np.pad(mask, 1)
        return [
            at
            for at in map(tuple, np.argwhere(mask).tolist())
            if not all(padded[tuple(np.array(at) + 1 + step)] for step in steps)
        ]

    return [
        min(float(np.hypot.reduce(np.subtract(at, to))) for to in surface(other))
        for at in surface(one)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(1, 1, 9, 8), (1, 1, 5, 6, 4)])
def test_surface_distances_are_those_of_a_plain_loop(seed: int, shape: tuple[int, ...]) -> None:
    one, other = blobs(seed, shape)[0, 0], blobs(seed + 50, shape)[0, 0]
    there, back = surface_distances(one, other, spacing=0.5)
    np.testing.assert_allclose(there, 0.5 * np.array(plain_distances(one, other)))
    np.testing.assert_allclose(back, 0.5 * np.array(plain_distances(other, one)))


def test_distances_of_shifted_squares() -> None:
    one, other = np.zeros((2, 20, 20), dtype=bool)
    one[5:10, 5:10] = True
    other[5:10, 8:13] = True
    pair = surface_distances(one, other, spacing=2.0)
    # The left edge of one is three pixels of two millimetres from the other's.
    assert hd95(pair) == 6.0
    assert surface_dice(pair, tolerance=6.0) == 1.0
    assert surface_dice(pair, tolerance=0.0) < surface_dice(pair, tolerance=4.0) < 1.0
