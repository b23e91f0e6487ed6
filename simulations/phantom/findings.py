"""What is true about a phantom patient before any image exists: body, findings, class.

Labels, masks, report sentences and pixels all follow from these. Lengths are fractions of the
field of view; x runs to the right of the image and y downwards in the patient's own frame, in
which every patient stands upright at (0.5, 0.5). As on a light box, the image's left is the
patient's right.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medfed.common.seeding import numpy_rng

Modality = Literal["xray", "ct"]
Kind = Literal["nodule", "effusion", "cardiomegaly", "consolidation"]
Side = Literal["right", "left", "midline"]

NORMAL = "normal"
CLASSES: dict[Modality, tuple[str, ...]] = {
    "xray": (NORMAL, "nodule", "effusion", "cardiomegaly"),
    "ct": (NORMAL, "nodule", "effusion", "consolidation"),
}
FIELD_OF_VIEW_MM: dict[Modality, float] = {"xray": 400.0, "ct": 380.0}

# Half the inner width of the thorax on the radiograph: the cardiothoracic ratio is heart over this.
THORAX_HALF_WIDTH = 0.36


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing a radiologist would report.

    Attributes:
        kind: What it is.
        side: The patient's side.
        centre: (x, y) in the patient's frame.
        extent: Radius of a nodule or consolidation, depth of an effusion, half width of the heart.
        contrast: Opacity, 0 (invisible) to 1 (as dense as soft tissue).
    """

    kind: Kind
    side: Side
    centre: tuple[float, float]
    extent: float
    contrast: float

    def grown(self, factor: float) -> "Finding":
        """Return the same finding with its extent multiplied by `factor`."""
        return replace(self, extent=self.extent * factor)


@dataclass(frozen=True, kw_only=True)
class Body:
    """How this patient differs from the average one, whatever the findings.

    Attributes:
        width: Width of the chest over the average.
        girth: Soft tissue over lungs and ribs, 0 (slim) to 1 (stout).
        heart: Half width of a healthy heart, fraction of the field of view.
        diaphragm: Shift of the diaphragm, positive downwards (deep breath).
        phase: Shift of rib and vessel pattern, 0..1.
        breasts: Whether breast shadows are drawn.
    """

    width: float
    girth: float
    heart: float
    diaphragm: float
    phase: float
    breasts: bool


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One phantom patient; `number` counts from 0 over the whole cohort."""

    number: int
    scanner: int
    sex: Literal["F", "M"]
    age: int
    body: Body
    findings: tuple[Finding, ...]
    num_images: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names: every finding's kind, or only `normal`."""
        return tuple(finding.kind for finding in self.findings) or (NORMAL,)


def draw_patient(
    seed: int,
    number: int,
    *,
    modality: Modality,
    shares: tuple[float, ...],
    prevalences: tuple[tuple[float, ...], ...],
    max_images: int,
    co_occurrence: float = 0.0,
) -> Patient:
    """Draw patient `number` of the cohort `seed`; the other patients do not matter.

    Args:
        seed: Root seed.
        number: The patient's number.
        modality: Which classes there are and where findings lie.
        shares: Probability of each scanner.
        prevalences: For each scanner the probability of each class of `CLASSES[modality]`.
        max_images: The patient has 1 to this many images.
        co_occurrence: Probability of each further finding in a patient who has one already.
    """
    rng = numpy_rng(seed, "phantom", "patient", number)
    scanner = int(rng.choice(len(shares), p=shares))
    classes = CLASSES[modality]
    primary = classes[int(rng.choice(len(classes), p=prevalences[scanner]))]
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
    age = int(np.clip(rng.normal(58, 16), 18, 95))
    body = _draw_body(rng, female=sex == "F")
    num_images = int(rng.integers(1, max_images + 1))
    kinds = [primary] if primary != NORMAL else []
    # Drawn for every class whether used or not, so that co_occurrence moves no other number.
    others = {kind: float(rng.random()) for kind in classes[1:]}
    if kinds:
        kinds += [k for k, chance in others.items() if k != primary and chance < co_occurrence]
    findings = tuple(
        _draw_finding(numpy_rng(seed, "phantom", "finding", number, kind), kind, modality)
        for kind in sorted(kinds, key=classes.index)
    )
    return Patient(
        number=number,
        scanner=scanner,
        sex=sex,
        age=age,
        body=body,
        findings=findings,
        num_images=num_images,
    )


def _draw_body(rng: np.random.Generator, *, female: bool) -> Body:
    return Body(
        width=float(rng.uniform(0.93, 1.05)) - (0.02 if female else 0.0),
        girth=float(rng.beta(2, 3)),
        heart=THORAX_HALF_WIDTH * float(rng.uniform(0.40, 0.495)),
        diaphragm=float(rng.uniform(-0.035, 0.03)),
        phase=float(rng.random()),
        breasts=female,
    )


def _draw_finding(rng: np.random.Generator, kind: str, modality: Modality) -> Finding:
    side: Side = "right" if rng.random() < 0.5 else "left"
    sign = -1.0 if side == "right" else 1.0
    if kind == "nodule":
        x, y = _lung_point(rng, side, modality)
        diameter_mm = float(rng.uniform(12, 30))
        return Finding(
            kind="nodule",
            side=side,
            centre=(x, y),
            extent=diameter_mm / 2 / FIELD_OF_VIEW_MM[modality],
            contrast=float(rng.uniform(0.45, 0.85)),
        )
    if kind == "consolidation":
        x, y = _lung_point(rng, side, modality)
        extent, contrast = float(rng.uniform(0.055, 0.095)), float(rng.uniform(0.55, 0.95))
        return Finding(
            kind="consolidation", side=side, centre=(x, y), extent=extent, contrast=contrast
        )
    if kind == "effusion":
        centre = (0.5 + sign * 0.24, 0.78 if modality == "xray" else 0.64)
        deepest = 0.26 if modality == "xray" else 0.15
        return Finding(
            kind="effusion",
            side=side,
            centre=centre,
            extent=float(rng.uniform(0.04, deepest)),
            contrast=float(rng.uniform(0.75, 1.0)),
        )
    return Finding(
        kind="cardiomegaly",
        side="midline",
        centre=(0.53, 0.64),
        extent=THORAX_HALF_WIDTH * float(rng.uniform(0.515, 0.67)),
        contrast=1.0,
    )


def _lung_point(rng: np.random.Generator, side: Side, modality: Modality) -> tuple[float, float]:
    """Return a point well inside the lung of `side`, away from heart and hilum."""
    sign = -1.0 if side == "right" else 1.0
    if modality == "ct":
        angle, radius = rng.uniform(0, 2 * np.pi), 0.62 * np.sqrt(rng.random())
        offset = 0.205 + 0.10 * float(radius * np.cos(angle))
        y = 0.48 + 0.19 * float(radius * np.sin(angle))
        if side == "left" and y < 0.54:
            # The heart lies in front on the left; a finding must not hide in it.
            offset = 0.235 + 0.04 * (offset - 0.143) / 0.124
        return 0.5 + sign * offset, y
    y = float(rng.uniform(0.24, 0.68))
    # The healthy heart covers the medial part of the lower left zone.
    nearest = 0.24 if side == "left" and y > 0.5 else 0.13
    farthest = 0.22 if y < 0.32 else 0.29
    return 0.5 + sign * float(rng.uniform(nearest, max(farthest, nearest + 0.03))), y
