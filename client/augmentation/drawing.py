"""What happens to each image of a batch, drawn by MONAI's random transforms.

MONAI's transforms draw and do not apply: applied one image at a time they cost 1 ms each (an
affine of 64x64 pixels), as much as the image's whole training step. What they drew is applied to
the batch at once instead; tests hold it against MONAI's own result.

Shapes: B images, D spatial axes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.client.augmentation.geometry import sampling_matrix
from medfed.common.study import AugmentationSection

_SEEDS = 2**63
# The axes that a flip may mirror, by dimensions. Images are rows, columns; volumes are left to
# right, back to front, feet to head.
FLIP_AXES: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"none": (), "horizontal": (1,), "vertical": (0,), "both": (0, 1)},
    3: {"none": (), "horizontal": (0,), "vertical": (2,), "both": (0, 2)},
}


@dataclass(frozen=True)
class Changes:
    """What happens to one image.

    Attributes:
        flips: Spatial axes to mirror.
        matrix: float64 [D, D + 1], from a pixel's place in the result to its place in the image,
            both in pixels from the centre; None where nothing moves.
        gamma: Power of the pixels, scaled to the image's own range.
        factor: Factor of the pixels.
        offset: Added to the pixels.
        noise_std: Standard deviation of the noise.
        noise_seed: What the noise is drawn from.
    """

    flips: tuple[int, ...]
    matrix: npt.NDArray[np.float64] | None
    gamma: float
    factor: float
    offset: float
    noise_std: float
    noise_seed: int


class Drawer:
    """MONAI's transforms for images of one spatial shape. Not to be shared between threads."""

    def __init__(self, section: AugmentationSection, shape: tuple[int, ...]) -> None:
        # MONAI takes seconds to import and most studies do not augment.
        from monai import transforms

        chance, dimensions = section.probability, len(shape)
        self._section = section
        self._axes = FLIP_AXES[dimensions][section.flip]
        # Their randomize() reads the number of spatial axes from an image, and nothing else.
        self._any_image = np.empty((1,) * (dimensions + 1))
        self._flips = [transforms.RandFlip(chance, axis) for axis in range(dimensions)]
        self._zoom = transforms.RandZoom(chance, 1 - section.zoom, 1 + section.zoom)
        num_angles, num_shears = (1, 2) if dimensions == 2 else (3, 6)
        self._affine = transforms.RandAffine(
            chance,
            rotate_range=[math.radians(section.rotate_degrees)] * num_angles,
            shear_range=[math.tan(math.radians(section.shear_degrees))] * num_shears,
            translate_range=[section.translate * side for side in shape],
        )
        self._gamma = transforms.RandAdjustContrast(chance, (1 - section.gamma, 1 + section.gamma))
        self._factor = transforms.RandScaleIntensity(section.rescale, chance)
        self._offset = transforms.RandShiftIntensity(section.brightness, prob=chance)

    def draw(self, rng: np.random.Generator, num_images: int) -> list[Changes]:
        """Draw one integer an image from `rng`, and from it all that happens to that image."""
        seeds = rng.integers(_SEEDS, size=num_images)
        return [self._draw_one(int(seed)) for seed in seeds]

    def _draw_one(self, seed: int) -> Changes:
        # Seeding NumPy's Mersenne Twister, MONAI's own way, takes ten times as long.
        state = np.random.RandomState(np.random.PCG64(seed))
        flips = [self._drawn(transform, state) for transform in self._flips]
        zoom = self._zoom._zoom[0] if self._drawn(self._zoom, state) else 1.0
        affine = self._affine.rand_affine_grid if self._drawn(self._affine, state) else None
        gamma = self._gamma.gamma_value if self._drawn(self._gamma, state) else 1.0
        factor = 1.0 + self._factor.factor if self._drawn(self._factor, state) else 1.0
        offset = self._offset._offset if self._drawn(self._offset, state) else 0.0
        # MONAI's RandGaussianNoise would draw the noise itself, four times slower than torch.
        noisy = state.rand() < self._section.probability
        noise_std = state.uniform(0.0, self._section.noise)
        return Changes(
            flips=tuple(axis for axis in self._axes if flips[axis]),
            matrix=self._matrix(affine, float(zoom)),
            gamma=float(gamma),
            factor=float(factor),
            offset=float(offset),
            noise_std=noise_std if noisy else 0.0,
            noise_seed=int(state.randint(2**31)),
        )

    def _drawn(self, transform: Any, state: np.random.RandomState) -> bool:
        transform.set_random_state(state=state)
        if transform is self._affine:
            transform.randomize()
        else:
            transform.randomize(self._any_image)
        return bool(transform._do_transform)

    def _matrix(self, affine: Any, zoom: float) -> npt.NDArray[np.float64] | None:
        if not self._section.moves or (affine is None and zoom == 1.0):
            return None
        dimensions = len(self._flips)
        if affine is None:
            return sampling_matrix((), (), (0.0,) * dimensions, zoom)
        return sampling_matrix(
            affine.rotate_params, affine.shear_params, affine.translate_params, zoom
        )
