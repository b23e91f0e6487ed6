"""Images a second through every augmentation at once, against MONAI one image at a time.

OMP_NUM_THREADS=1 python scripts/bench/augmentation.py
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from monai import transforms
from torch import Tensor

from medfed.client.augmentation import Augmenter
from medfed.common.study import AugmentationSection

BATCH = 32
REPEATS = 9
SECTION = AugmentationSection(
    flip="both",
    rotate_degrees=15,
    shear_degrees=5,
    translate=0.1,
    zoom=0.1,
    rescale=0.1,
    brightness=0.1,
    gamma=0.2,
    noise=0.05,
)


def main() -> None:
    torch.set_num_threads(1)
    cases: tuple[tuple[tuple[int, ...], Literal[2, 3]], ...] = (
        ((1, 64, 64), 2),
        ((3, 128, 128), 2),
        ((1, 32, 32, 32), 3),
    )
    print(f"{'image':>16}  {'medfed':>10}  {'with mask':>10}  {'MONAI':>10}   images a second")
    for shape, dimensions in cases:
        columns = "  ".join(f"{speed:10.0f}" for speed in speeds(shape, dimensions))
        print(f"{'x'.join(map(str, shape)):>16}  {columns}")


def speeds(shape: tuple[int, ...], dimensions: Literal[2, 3]) -> list[float]:
    images = torch.rand(BATCH, *shape)
    masks = torch.randint(0, 3, (BATCH, *shape[1:]), dtype=torch.uint8)
    augment, rng = Augmenter(SECTION, dimensions), np.random.default_rng(0)
    monai = one_at_a_time(shape[1:])
    return [
        images_a_second(lambda: augment(images, None, rng)),
        images_a_second(lambda: augment(images, masks, rng)),
        images_a_second(lambda: [monai(image) for image in images]),
    ]


def images_a_second(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.median(seconds)


def one_at_a_time(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The same changes as MONAI composes them; images only."""
    chance, dimensions = SECTION.probability, len(shape)
    composed: Callable[[Tensor], Tensor] = transforms.Compose(
        [
            transforms.RandFlip(chance, 0),
            transforms.RandFlip(chance, dimensions - 1),
            transforms.RandZoom(chance, 1 - SECTION.zoom, 1 + SECTION.zoom),
            transforms.RandAffine(
                chance,
                rotate_range=[math.radians(SECTION.rotate_degrees)] * (1 if dimensions == 2 else 3),
                shear_range=[math.tan(math.radians(SECTION.shear_degrees))]
                * (2 if dimensions == 2 else 6),
                translate_range=[SECTION.translate * side for side in shape],
                padding_mode="zeros",
            ),
            transforms.RandAdjustContrast(chance, (1 - SECTION.gamma, 1 + SECTION.gamma)),
            transforms.RandScaleIntensity(SECTION.rescale, chance),
            transforms.RandShiftIntensity(SECTION.brightness, prob=chance),
            transforms.RandGaussianNoise(chance, std=SECTION.noise),
        ]
    )
    return composed


if __name__ == "__main__":
    main()
