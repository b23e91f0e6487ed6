"""Soft shapes on a pixel grid, in the patient's frame. Arrays are float64 [H, W].

Double precision although the result has 8 bits: processors differ in the last bit of `exp` and
`cos`, and in float64 that practically never reaches a pixel's rounded value.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How a patient stood in front of the detector for one image.

    Attributes:
        shift: (x, y) displacement, fractions of the field of view.
        scale: Magnification.
        angle: Rotation, radians.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    angle: float = 0.0


@dataclass(frozen=True)
class Canvas:
    """Coordinates of every pixel's centre in the patient's frame.

    Attributes:
        x: Left to right, [H, W].
        y: Top to bottom, [H, W].
        pixel: Width of a pixel, fraction of the field of view.
    """

    x: Field
    y: Field
    pixel: float

    def inside(self, distance: Field, edge: float = 0.006) -> Field:
        """Return coverage 0..1: 1 where `distance` is negative, smooth over +-`edge`."""
        edge = max(edge, 0.6 * self.pixel)
        t = np.clip(0.5 - distance / (2 * edge), 0.0, 1.0)
        smooth: Field = t * t * (3 - 2 * t)
        return smooth

    def radius(
        self, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0
    ) -> Field:
        """Return each pixel's radius in units of an ellipse's: 1 on its border."""
        dx, dy = self.x - centre[0], self.y - centre[1]
        if angle:
            cos, sin = np.cos(angle), np.sin(angle)
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        rho: Field = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2)
        return rho

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        angle: float = 0.0,
        edge: float = 0.006,
    ) -> Field:
        """Return the coverage 0..1 of an ellipse with half axes `radii`."""
        small = min(radii)
        return self.inside((self.radius(centre, radii, angle) - 1) * small, edge)

    def blob(self, centre: tuple[float, float], radii: tuple[float, float]) -> Field:
        """Return a Gaussian bump of height 1."""
        bump: Field = np.exp(-(self.radius(centre, radii) ** 2))
        return bump


def make_canvas(image_size: int, pose: Pose) -> Canvas:
    """Return the canvas of [image_size, image_size] pixels for a patient standing as in `pose`."""
    axis = (np.arange(image_size) + 0.5) / image_size - 0.5
    dx = (axis[None, :] - pose.shift[0]) / pose.scale
    dy = (axis[:, None] - pose.shift[1]) / pose.scale
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    x = 0.5 + cos * dx + sin * dy
    y = 0.5 - sin * dx + cos * dy
    return Canvas(x, y, 1.0 / image_size)


def blur(image: Field, sigma_px: float) -> Field:
    """Return `image` [H, W] convolved with a Gaussian of `sigma_px` pixels, edges repeated."""
    reach = int(np.ceil(2.5 * sigma_px))
    if sigma_px < 0.2 or reach == 0:
        return image
    offsets = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        width = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(image, width, mode="edge")
        length = image.shape[axis]
        # Sliced sums rather than a matrix product: one order of addition on every machine.
        image = np.zeros_like(image)
        for start, tap in enumerate(taps):
            window = (
                padded[start : start + length] if axis == 0 else padded[:, start : start + length]
            )
            image += tap * window
    return image
