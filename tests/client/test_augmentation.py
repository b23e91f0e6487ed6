"""Augmentation: exact where it can be, otherwise against MONAI applied one image at a time."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medfed.client.augmentation import Augmenter
from medfed.client.augmentation.drawing import Changes, Drawer
from medfed.client.augmentation.geometry import resample, sampling_matrix
from medfed.common.study import AugmentationSection

EVERYTHING: dict[str, Any] = {
    "flip": "both",
    "rotate_degrees": 25.0,
    "shear_degrees": 10.0,
    "translate": 0.1,
    "zoom": 0.2,
    "rescale": 0.2,
    "brightness": 0.1,
    "gamma": 0.3,
    "noise": 0.05,
    "probability": 0.6,
}
MOVING = {k: EVERYTHING[k] for k in ("rotate_degrees", "shear_degrees", "translate", "zoom")}


def augmenter(dimensions: Any = 2, **settings: Any) -> Augmenter:
    return Augmenter(AugmentationSection(**settings), dimensions)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_images(num: int, *shape: int) -> Tensor:
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(5))


def random_masks(num: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (num, *shape), generator=generator, dtype=torch.uint8)


def draws(num: int, seed: int = 0, **settings: Any) -> list[Changes]:
    return Drawer(AugmentationSection(**settings), (20, 20)).draw(rng(seed), num)


# The section.


def test_section_is_off_by_default() -> None:
    assert not AugmentationSection().enabled


@pytest.mark.parametrize("key", [k for k in EVERYTHING if k != "probability"])
def test_section_is_enabled_by_each_change(key: str) -> None:
    assert AugmentationSection(**{key: EVERYTHING[key]}).enabled


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip", "sideways"),
        ("rotate_degrees", -1),
        ("rotate_degrees", 181),
        ("rotate_degrees", math.nan),
        ("shear_degrees", 45),
        ("translate", 1.0),
        ("zoom", 1.0),
        ("zoom", -0.1),
        ("rescale", 1.5),
        ("brightness", 2),
        ("gamma", 1.0),
        ("noise", math.inf),
        ("probability", 0.0),
        ("probability", 1.1),
        ("multiplicity", 0),
        ("rotation", 3),
    ],
)
def test_section_refuses_what_is_impossible(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        AugmentationSection(**{key: value})


# What is exact.


def test_augmenter_changes_nothing_when_off() -> None:
    images, masks = random_images(3, 2, 9, 8), random_masks(3, 9, 8)
    out, out_masks = augmenter()(images, masks, rng())
    assert torch.equal(out, images)
    assert out_masks is not None
    assert torch.equal(out_masks, masks)


@pytest.mark.parametrize(
    ("dimensions", "flip", "axes"),
    [
        (2, "horizontal", (3,)),
        (2, "vertical", (2,)),
        (2, "both", (2, 3)),
        (3, "horizontal", (2,)),
        (3, "vertical", (4,)),
        (3, "both", (2, 4)),
    ],
)
def test_flip_mirrors_exactly(dimensions: int, flip: str, axes: tuple[int, ...]) -> None:
    shape = (9, 8, 7)[:dimensions]
    images, masks = random_images(3, 2, *shape), random_masks(3, *shape)
    out, out_masks = augmenter(dimensions, flip=flip, probability=1.0)(images, masks, rng())
    assert torch.equal(out, images.flip(axes))
    assert out_masks is not None
    assert torch.equal(out_masks, masks.flip([axis - 1 for axis in axes]))


def test_flip_of_both_draws_each_axis_alone() -> None:
    seen = {change.flips for change in draws(64, flip="both", probability=0.5)}
    assert seen == {(), (0,), (1,), (0, 1)}


def test_resample_turns_by_a_right_angle_exactly() -> None:
    # Row r, column c, counted from the centre, is read from row -c, column r.
    images = random_images(1, 2, 8, 8)
    by = torch.from_numpy(sampling_matrix((math.pi / 2,), (), (0.0, 0.0), 1.0)).float()[None]
    torch.testing.assert_close(resample(images, by, "bilinear"), images.rot90(-1, (2, 3)))
    assert torch.equal(resample(images, by, "nearest"), images.rot90(-1, (2, 3)))


def test_resample_shifts_by_whole_pixels_and_fills_with_zeros() -> None:
    images = random_images(1, 1, 6, 6)
    by = torch.from_numpy(sampling_matrix((), (), (2.0, -1.0), 1.0)).float()[None]
    expected = torch.zeros_like(images)
    expected[:, :, :4, 1:] = images[:, :, 2:, :5]
    torch.testing.assert_close(resample(images, by, "bilinear"), expected)


def test_zoom_enlarges_and_shrinks() -> None:
    square = torch.zeros(1, 1, 32, 32)
    square[:, :, 12:20, 12:20] = 1.0
    for zoom in (0.5, 1.5):
        by = torch.from_numpy(sampling_matrix((), (), (0.0, 0.0), zoom)).float()[None]
        area = float(resample(square, by, "bilinear").sum())
        assert area == pytest.approx(64 * zoom**2, rel=0.02)


# Against MONAI, one image at a time.


@pytest.mark.parametrize("dimensions", [2, 3])
def test_resample_equals_monai_affine(dimensions: int) -> None:
    from monai.transforms import Affine

    generator = rng(3)
    shape = (17, 12, 14)[:dimensions]
    for image in random_images(6, 2, *shape):
        angles = tuple(generator.uniform(-1, 1, 1 if dimensions == 2 else 3).tolist())
        shears = tuple(generator.uniform(-0.3, 0.3, 2 if dimensions == 2 else 6).tolist())
        shifts = tuple(generator.uniform(-3, 3, dimensions).tolist())
        zoom = float(generator.uniform(0.7, 1.3))
        by = torch.from_numpy(sampling_matrix(angles, shears, shifts, zoom)).float()[None]
        expected = Affine(
            rotate_params=angles,
            shear_params=shears,
            translate_params=shifts,
            scale_params=[1 / zoom] * dimensions,
            padding_mode="zeros",
            image_only=True,
        )(image)
        ours = resample(image[None], by, "bilinear")[0]
        torch.testing.assert_close(ours, expected.as_tensor(), atol=2e-5, rtol=0)


def monai_alone(image: Tensor, seed: int, section: AugmentationSection) -> Tensor:
    """What MONAI's transforms make of one image, called one after the other."""
    from monai import transforms

    state = np.random.RandomState(np.random.PCG64(seed))
    chance = section.probability
    for axis in (0, 1):
        image = transforms.RandFlip(chance, axis).set_random_state(state=state)(image)
    zoom = transforms.RandZoom(chance, 1 - section.zoom, 1 + section.zoom)
    zoom.set_random_state(state=state).randomize(image)
    factor = zoom._zoom[0] if zoom._do_transform else 1.0
    turn = transforms.RandAffine(
        chance,
        rotate_range=(math.radians(section.rotate_degrees),),
        shear_range=(math.tan(math.radians(section.shear_degrees)),) * 2,
        translate_range=[section.translate * side for side in image.shape[1:]],
    )
    turn.set_random_state(state=state).randomize()
    grid = turn.rand_affine_grid
    image = transforms.Affine(
        rotate_params=grid.rotate_params if turn._do_transform else None,
        shear_params=grid.shear_params if turn._do_transform else None,
        translate_params=grid.translate_params if turn._do_transform else None,
        scale_params=(1 / factor,) * 2,
        padding_mode="zeros",
        image_only=True,
    )(image)
    gamma = transforms.RandAdjustContrast(chance, (1 - section.gamma, 1 + section.gamma))
    image = gamma.set_random_state(state=state)(image)
    scale = transforms.RandScaleIntensity(section.rescale, chance)
    image = scale.set_random_state(state=state)(image)
    shift = transforms.RandShiftIntensity(section.brightness, prob=chance)
    image = shift.set_random_state(state=state)(image)
    plain: Tensor = image.as_tensor()
    return plain.clamp(0, 1)


def test_augmenter_equals_monai_one_image_at_a_time() -> None:
    section = AugmentationSection(**{**EVERYTHING, "noise": 0.0})
    images = random_images(24, 3, 16, 20)
    out, _ = Augmenter(section, 2)(images, None, rng(11))
    seeds = rng(11).integers(2**63, size=24)
    for image, result, seed in zip(images, out, seeds, strict=True):
        expected = monai_alone(image, int(seed), section)
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
    assert not torch.equal(out, images)


# Determinism.


def test_augmenter_repeats_itself_under_one_seed_and_not_under_another() -> None:
    images, augment = random_images(8, 1, 16, 16), augmenter(**EVERYTHING)
    first, again = augment(images, None, rng(1))[0], augment(images, None, rng(1))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, None, rng(2))[0])


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (3, 13, 17)), (3, (1, 9, 7, 8))])
def test_an_image_depends_on_its_own_draw_only(dimensions: int, shape: tuple[int, ...]) -> None:
    images, masks = random_images(9, *shape), random_masks(9, *shape[1:])
    augment = augmenter(dimensions, **EVERYTHING)
    together, masks_together = augment(images, masks, rng(4))
    stream = rng(4)
    # The same stream in pieces, among other neighbours and alone.
    for start, stop in ((0, 1), (1, 6), (6, 9)):
        part, mask = augment(images[start:stop], masks[start:stop], stream)
        assert torch.equal(part, together[start:stop])
        assert mask is not None
        assert masks_together is not None
        assert torch.equal(mask, masks_together[start:stop])


def test_versions_of_one_image_differ() -> None:
    images = random_images(1, 1, 16, 16).expand(6, -1, -1, -1)
    out, _ = augmenter(**{**EVERYTHING, "probability": 1.0})(images, None, rng())
    assert len({tuple(image.flatten().tolist()) for image in out}) == 6


def test_one_change_leaves_the_draws_of_the_others_alone() -> None:
    without = {**EVERYTHING, "flip": "none", "gamma": 0.0, "noise": 0.0}
    for few, all_of_them in zip(draws(20, **without), draws(20, **EVERYTHING), strict=True):
        assert few.factor == all_of_them.factor
        np.testing.assert_array_equal(few.matrix, all_of_them.matrix)


def test_augmenter_in_threads_agrees_with_serial() -> None:
    augment = augmenter(**EVERYTHING)
    images, masks = random_images(6, 1, 24, 24), random_masks(6, 24, 24)

    def run(seed: int) -> tuple[Tensor, Tensor | None]:
        return augment(images, masks, rng(seed))

    serial = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(run, range(16)))
    for (image, mask), (expected, expected_mask) in zip(threaded, serial, strict=True):
        assert torch.equal(image, expected)
        assert mask is not None
        assert expected_mask is not None
        assert torch.equal(mask, expected_mask)


def test_augmenter_leaves_inputs_and_global_random_state_alone() -> None:
    images, masks = random_images(4, 1, 16, 16), random_masks(4, 16, 16)
    before, masks_before = images.clone(), masks.clone()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    augmenter(**{**EVERYTHING, "probability": 1.0})(images, masks, rng())
    assert torch.equal(images, before)
    assert torch.equal(masks, masks_before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_augmenter_takes_an_empty_batch() -> None:
    out, masks = augmenter(**EVERYTHING)(torch.zeros(0, 1, 8, 8), random_masks(0, 8, 8), rng())
    assert out.shape == (0, 1, 8, 8)
    assert masks is not None
    assert masks.shape == (0, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_augmenter_on_a_gpu_is_repeatable_and_close_to_the_cpu() -> None:
    images, masks = random_images(8, 3, 32, 32), random_masks(8, 32, 32)
    augment = augmenter(**EVERYTHING)
    there, masks_there = augment(images.cuda(), masks.cuda(), rng())
    again, _ = augment(images.cuda(), masks.cuda(), rng())
    here, masks_here = augment(images, masks, rng())
    assert torch.equal(there, again)
    assert masks_there is not None
    assert masks_here is not None
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=0)
    # Rounding may push a place that is halfway between two pixels to the other one.
    assert float((masks_there.cpu() != masks_here).float().mean()) < 1e-3


# Images and masks.


def ball(radius: float, *shape: int) -> Tensor:
    """1 inside a ball that lies off the centre of the image, 0 outside."""
    axes = torch.meshgrid(*[torch.arange(side).float() for side in shape], indexing="ij")
    centre = [0.45 * side for side in shape]
    squares = [(axis - at) ** 2 for axis, at in zip(axes, centre, strict=True)]
    return (torch.stack(squares).sum(dim=0) <= radius**2).float()


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (64, 64)), (3, (32, 32, 32))])
def test_a_ball_stays_on_its_mask(dimensions: int, shape: tuple[int, ...]) -> None:
    radius = shape[0] / 4
    images = ball(radius, *shape).expand(12, 1, *shape)
    masks = (3 * images[:, 0]).to(torch.uint8)
    settings = {**MOVING, "flip": "both", "probability": 1.0}
    out, out_masks = augmenter(dimensions, **settings)(images, masks, rng())
    assert out_masks is not None
    assert set(out_masks.unique().tolist()) == {0, 3}
    inside, marked = out[:, 0] > 0.5, out_masks == 3
    axes = tuple(range(1, inside.dim()))
    dice = 2 * (inside & marked).sum(axes) / (inside.sum(axes) + marked.sum(axes))
    assert float(dice.min()) >= 0.95
    # It did move: or the Dice would say nothing.
    still = 2 * (marked & (masks == 3)).sum(axes) / (marked.sum(axes) + (masks == 3).sum(axes))
    assert float(still.mean()) < 0.9


def test_masks_of_bits_keep_every_region_on_its_own() -> None:
    left, right = ball(10, 48, 48).bool(), ball(16, 48, 48).bool()
    masks = (left.to(torch.uint8) + 2 * right.to(torch.uint8)).expand(6, 48, 48)
    images = torch.zeros(6, 1, 48, 48)
    settings = {**MOVING, "probability": 1.0}
    together = augmenter(**settings)(images, masks, rng())[1]
    alone = augmenter(**settings)(images, 2 * right.to(torch.uint8).expand(6, 48, 48), rng())[1]
    assert together is not None
    assert alone is not None
    assert torch.equal(together & 2, alone)


def test_pixels_stay_between_0_and_1() -> None:
    settings = {**EVERYTHING, "noise": 0.5, "brightness": 0.9, "probability": 1.0}
    out, _ = augmenter(**settings)(random_images(8, 1, 16, 16), None, rng())
    assert float(out.min()) == 0.0
    assert float(out.max()) == 1.0
    assert out.dtype == torch.float32


# How much.


def test_angles_fill_their_range_and_no_more() -> None:
    changes = draws(400, rotate_degrees=30.0, probability=1.0)
    turns = [change.matrix for change in changes if change.matrix is not None]
    angles = np.degrees([math.atan2(turn[1, 0], turn[0, 0]) for turn in turns])
    assert len(angles) == 400
    assert np.abs(angles).max() <= 30
    # Uniform: standard deviation 30 / sqrt(3), known to 4 % from 400 draws.
    assert angles.std() == pytest.approx(30 / math.sqrt(3), rel=0.1)
    assert abs(angles.mean()) < 3


def test_zoom_fills_its_range_and_no_more() -> None:
    changes = draws(400, zoom=0.2, probability=1.0)
    zooms = np.array([1 / change.matrix[0, 0] for change in changes if change.matrix is not None])
    assert zooms.min() >= 0.8
    assert zooms.max() <= 1.2
    assert zooms.std() == pytest.approx(0.2 / math.sqrt(3), rel=0.1)


def test_noise_has_the_standard_deviation_drawn() -> None:
    images = torch.full((40, 1, 64, 64), 0.5)
    out, _ = augmenter(noise=0.1, probability=1.0)(images, None, rng())
    spread = (out - images).std(dim=(1, 2, 3)).numpy()
    drawn = [change.noise_std for change in draws(40, noise=0.1, probability=1.0)]
    np.testing.assert_allclose(spread, drawn, rtol=0.05)
    assert 0.07 < spread.max() <= 0.102


@pytest.mark.parametrize("probability", [0.2, 0.8])
def test_probability_is_that_of_each_change(probability: float) -> None:
    changes = draws(2000, **{**EVERYTHING, "probability": probability})
    happened = {
        "flip of rows": [0 in change.flips for change in changes],
        "flip of columns": [1 in change.flips for change in changes],
        "gamma": [change.gamma != 1 for change in changes],
        "factor": [change.factor != 1 for change in changes],
        "offset": [change.offset != 0 for change in changes],
        "noise": [change.noise_std != 0 for change in changes],
    }
    for name, each in happened.items():
        # Four standard deviations of a share of 2000: 0.036.
        assert np.mean(each) == pytest.approx(probability, abs=0.036), name
    # Two changes move: the affine and the zoom.
    moved = np.mean([change.matrix is not None for change in changes])
    assert moved == pytest.approx(1 - (1 - probability) ** 2, abs=0.036)
