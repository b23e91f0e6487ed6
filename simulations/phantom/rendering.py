"""From a patient to the pixels and the mask of one image. Nothing here depends on other images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.common.seeding import numpy_rng
from medfed.simulations.phantom.canvas import Canvas, Field, Pose, make_canvas
from medfed.simulations.phantom.ct import paint_ct
from medfed.simulations.phantom.findings import CLASSES, Finding, Modality, Patient
from medfed.simulations.phantom.scanners import Scanner, expose
from medfed.simulations.phantom.xray import paint_xray


@dataclass(frozen=True, kw_only=True)
class View:
    """One image to be taken: everything its pixels depend on but the image size."""

    seed: int
    modality: Modality
    patient: Patient
    scanner: Scanner
    image_number: int

    def findings(self) -> tuple[Finding, ...]:
        """Return the patient's findings as they are on this image: some grow between images."""
        factor = 1.0
        for number in range(1, self.image_number):
            rng = numpy_rng(self.seed, "phantom", "growth", self.patient.number, number)
            factor *= float(rng.uniform(1.0, 1.10))
        return tuple(
            finding if finding.kind == "cardiomegaly" else finding.grown(factor)
            for finding in self.patient.findings
        )

    def stream(self, purpose: str) -> np.random.Generator:
        """Return this image's own random stream for `purpose`."""
        return numpy_rng(self.seed, "phantom", purpose, self.patient.number, self.image_number)

    def pose(self) -> Pose:
        """Return how the patient stood or lay for this image."""
        rng = self.stream("pose")
        return Pose(
            shift=(float(rng.normal(0, 0.012)), float(rng.normal(0, 0.012))),
            scale=self.scanner.zoom * float(rng.uniform(0.96, 1.04)),
            angle=float(rng.normal(0, 0.025)),
        )


def render_image(view: View, image_size: int) -> npt.NDArray[np.uint8]:
    """Return the image, uint8 [image_size, image_size], dense tissue bright."""
    density, _ = _paint(view, image_size)
    brightness = expose(view.scanner, density, view.stream("detector"), modality=view.modality)
    pixels: npt.NDArray[np.uint8] = np.rint(255 * brightness).astype(np.uint8)
    return pixels


def render_mask(view: View, image_size: int) -> npt.NDArray[np.uint8]:
    """Return the mask, uint8 [image_size, image_size]: 0, or the index of a finding's class.

    Where findings overlap, the later class in the modality's order is shown.
    """
    _, coverage = _paint(view, image_size)
    mask = np.zeros((image_size, image_size), dtype=np.uint8)
    for index, name in enumerate(CLASSES[view.modality]):
        if name in coverage:
            # A nodule of two pixels never covers one fully: compare with its own peak.
            peak = float(coverage[name].max())
            mask[coverage[name] > 0.5 * peak] = index
    return mask


def _paint(view: View, image_size: int) -> tuple[Field, dict[str, Field]]:
    canvas: Canvas = make_canvas(image_size, view.pose())
    paint = paint_xray if view.modality == "xray" else paint_ct
    return paint(canvas, view.patient.body, view.findings())
