"""The fake sites' scanners: physics, prevalence, number of patients and wording, from a seed."""

from dataclasses import dataclass

import numpy as np

from medfed.common.seeding import numpy_rng
from medfed.simulations.phantom.canvas import Field, blur
from medfed.simulations.phantom.findings import Modality

NUM_STYLES = 5


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One fake site's machine and habits.

    Attributes:
        number: Counts from 0; the column `scanner` shows number + 1.
        noise: Standard deviation of detector noise, fraction of full scale.
        gamma: Exponent of the tone curve.
        contrast: Slope of the tone curve around mid-grey.
        zoom: Magnification: how far the patient stands from the detector.
        offset: Brightness added, fraction of full scale.
        blur: Standard deviation of the point spread, fraction of the field of view.
        border: Mean width of the collimated border, fraction of the field of view.
        border_level: Brightness of the border, 0..1.
        heel: Brightness gradient from left to right, fraction of full scale.
        marker: Whether a lead side marker is in the picture.
        style: Which wording of `reports` its radiologists use.
        share: Probability that a patient of the cohort comes here; sums to 1 over scanners.
        prevalence: Probability of each class here, in the modality's order.
    """

    number: int
    noise: float
    gamma: float
    contrast: float
    zoom: float
    offset: float
    blur: float
    border: float
    border_level: float
    heel: float
    marker: bool
    style: int
    share: float
    prevalence: tuple[float, ...]

    @property
    def name(self) -> str:
        """Value of the column `scanner`, e.g. `scanner-1`."""
        return f"scanner-{self.number + 1}"


def make_scanners(seed: int, num_scanners: int, num_classes: int) -> tuple[Scanner, ...]:
    """Return the cohort's scanners; those with the same number agree but for their share."""
    weights = [np.exp(1.3 * _spread(seed, "share", n)) for n in range(num_scanners)]
    total = float(sum(weights))
    return tuple(
        _make_scanner(seed, number, float(weights[number]) / total, num_classes)
        for number in range(num_scanners)
    )


def _make_scanner(seed: int, number: int, share: float, num_classes: int) -> Scanner:
    def between(low: float, high: float, quantity: str) -> float:
        return low + (high - low) * _spread(seed, quantity, number)

    scores = np.array([_spread(seed, f"class-{c}", number) for c in range(num_classes)])
    odds = np.exp(2.2 * scores)
    prevalence = 0.08 + (1 - 0.08 * num_classes) * odds / odds.sum()
    return Scanner(
        number=number,
        noise=between(0.012, 0.075, "noise"),
        gamma=between(0.55, 1.8, "gamma"),
        contrast=between(0.7, 1.3, "contrast"),
        zoom=between(0.88, 1.05, "zoom"),
        offset=between(-0.10, 0.10, "offset"),
        blur=between(0.002, 0.016, "blur"),
        border=between(0.0, 0.07, "border"),
        border_level=between(0.0, 0.25, "border_level"),
        heel=between(-0.10, 0.10, "heel"),
        marker=_spread(seed, "marker", number) < 0.5,
        style=number % NUM_STYLES,
        share=share,
        prevalence=tuple(float(p) for p in prevalence / prevalence.sum()),
    )


def _spread(seed: int, quantity: str, number: int) -> float:
    """Return a value in 0..1 for scanner `number`.

    Each block of four scanners has one value in each quarter of the range, in an order of its own
    for every quantity: even four scanners differ, which independent draws would not ensure.
    """
    block, place = divmod(number, 4)
    rng = numpy_rng(seed, "phantom", "scanner", quantity, block)
    quarters, within = rng.permutation(4), rng.random(4)
    return float(quarters[place] + within[place]) / 4


def expose(
    scanner: Scanner, density: Field, rng: np.random.Generator, *, modality: Modality
) -> Field:
    """Return what `scanner` makes of an ideal picture: brightness 0..1, [H, W].

    Args:
        scanner: Physics.
        density: Ideal brightness [H, W], about 0..1.
        rng: The image's own stream; exposure, collimation and noise are drawn from it.
        modality: A radiograph is collimated by four blades and carries a lead marker; a slice
            ends at the circle of reconstruction.
    """
    size = density.shape[0]
    # Drawn before the pixels' noise, so that they do not depend on the image size.
    exposure = 1 + 0.06 * float(rng.standard_normal())
    level = 0.025 * float(rng.standard_normal())
    widths = scanner.border * rng.uniform(0.3, 1.7, size=4)
    image = blur(density, scanner.blur * size)
    image = 0.5 + (image - 0.5) * scanner.contrast * exposure + scanner.offset + level
    axis = (np.arange(size) + 0.5) / size
    image += scanner.heel * (axis[None, :] - 0.5)
    image = np.clip(image, 0.0, 1.0) ** scanner.gamma
    # Few quanta reach the detector behind dense tissue, so noise grows with brightness.
    image += scanner.noise * (0.5 + image) * rng.standard_normal(image.shape)
    if modality == "ct":
        radius = 0.53 - 0.6 * scanner.border
        shut = (axis[:, None] - 0.5) ** 2 + (axis[None, :] - 0.5) ** 2 > radius**2
    else:
        if scanner.marker:
            _draw_marker(image)
        top, bottom, left, right = widths
        shut = (axis[:, None] < top) | (axis[:, None] > 1 - bottom)
        shut = shut | (axis[None, :] < left) | (axis[None, :] > 1 - right)
    return np.where(shut, scanner.border_level, np.clip(image, 0.0, 1.0))


def _draw_marker(image: Field) -> None:
    """Draw a lead letter L over the patient's left shoulder, in place."""
    size = image.shape[0]
    top, bottom, left, right = (round(f * size) for f in (0.10, 0.16, 0.88, 0.92))
    stroke = max(1, size // 64)
    image[top:bottom, left : left + stroke] = 1.0
    image[bottom : bottom + stroke, left:right] = 1.0
