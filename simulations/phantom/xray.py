"""A frontal chest radiograph in the patient's frame: dense tissue bright, air dark.

Brightness is a sum of thicknesses, as in a projection, before any scanner's tone curve. `a` is
the distance from the midline; `side` is -1 for the patient's right lung, at the image's left.
"""

from dataclasses import dataclass

import numpy as np

from medfed.simulations.phantom.canvas import Canvas, Field
from medfed.simulations.phantom.findings import THORAX_HALF_WIDTH, Body, Finding


@dataclass(frozen=True)
class _Chest:
    """Geometry that organs and findings share."""

    canvas: Canvas
    s: Field
    a: Field
    lateral: Field
    dome: Field
    lung: Field


def paint_xray(
    canvas: Canvas, body: Body, findings: tuple[Finding, ...]
) -> tuple[Field, dict[str, Field]]:
    """Return the ideal radiograph, about 0..1, and each finding's coverage 0..1 by kind.

    Both [H, W].
    """
    chest = _chest(canvas, body)
    heart_size = next((f.extent for f in findings if f.kind == "cardiomegaly"), body.heart)
    heart = _heart(chest, body, heart_size)
    coverage: dict[str, Field] = {}
    fluid = np.zeros_like(chest.s)
    nodules = np.zeros_like(chest.s)
    for finding in findings:
        if finding.kind == "effusion":
            shape = _effusion(chest, finding)
            fluid = np.maximum(fluid, finding.contrast * shape)
        elif finding.kind == "nodule":
            # Found where it lies in the chest, which is wider or narrower than the average one.
            centre = (0.5 + (finding.centre[0] - 0.5) * body.width, finding.centre[1])
            shape = canvas.ellipse(centre, (finding.extent, finding.extent), edge=0.010)
            nodules = np.maximum(nodules, finding.contrast * shape)
        else:
            shape = heart
        coverage[finding.kind] = shape
    air = chest.lung * (1 - 0.88 * heart) * (1 - fluid)
    image = _soft_tissue(chest, body) - 0.46 * air
    image += air * _vessels(chest, body)
    image += 0.10 * heart + 0.30 * nodules * chest.lung
    image += _mediastinum(chest) + _bones(chest, body)
    return image, coverage


def _chest(canvas: Canvas, body: Body) -> _Chest:
    s = (canvas.x - 0.5) / body.width
    a, y = np.abs(s), canvas.y
    lateral = THORAX_HALF_WIDTH * np.clip((y - 0.11) / 0.50, 0.0, 1.0) ** 0.33
    # The right dome stands higher: the liver is below it.
    base = 0.755 + body.diaphragm + np.where(s < 0, 0.0, 0.025)
    dome = base + 0.10 * ((a - 0.16) / 0.19) ** 2
    medial = 0.045 + 0.02 * np.clip((y - 0.3) / 0.3, 0, 1)
    lung = canvas.inside(a - lateral, 0.010) * canvas.inside(medial - a, 0.012)
    lung = lung * canvas.inside(y - dome, 0.008)
    return _Chest(canvas, s, a, lateral, dome, lung)


def _heart(chest: _Chest, body: Body, half_width: float) -> Field:
    # A large heart grows to the patient's left.
    centre = 0.5 + body.width * (0.035 + 0.30 * (half_width - 0.15))
    foot = 0.665 + 0.6 * body.diaphragm
    radii = (half_width * body.width * 1.03, 0.085 + 0.34 * half_width)
    heart = chest.canvas.ellipse((centre, foot), radii, 0.50, 0.016)
    # Great vessels join it from above: the outline narrows into the mediastinum.
    stem = (centre - 0.015, foot - 0.06)
    heart = np.maximum(heart, chest.canvas.ellipse(stem, (0.66 * half_width, 0.19), 0.0, 0.035))
    return heart * chest.canvas.inside(chest.canvas.y - chest.dome - 0.02, 0.03)


def _effusion(chest: _Chest, finding: Finding) -> Field:
    """Fluid pools above the diaphragm and climbs the chest wall: a meniscus."""
    sign = -1.0 if finding.side == "right" else 1.0
    climb = 1.1 * np.clip(chest.a - 0.14, 0.0, None) ** 1.7
    # Measured from the costophrenic angle, which blunts first.
    level = 0.83 - finding.extent - climb
    side = chest.canvas.inside(-sign * chest.s, 0.01)
    return side * chest.canvas.inside(level - chest.canvas.y, 0.022) * chest.lung


def _soft_tissue(chest: _Chest, body: Body) -> Field:
    y, a = chest.canvas.y, chest.a
    t = np.clip((y - 0.01) / 0.17, 0.0, 1.0)
    half = 0.13 + (0.36 - 0.03 * np.clip((y - 0.3) / 0.4, 0, 1)) * t * t * (3 - 2 * t)
    thick = np.sqrt(np.clip(1 - (a / half) ** 2, 0.0, 1.0))
    image = (0.50 + 0.12 * body.girth) * thick**0.6 + 0.10 * thick
    # The abdomen stops more than the chest does.
    image += 0.10 * chest.canvas.inside(chest.dome - y, 0.02) * thick
    if body.breasts:
        for sign in (-1, 1):
            breast = chest.canvas.ellipse(
                (0.5 + sign * 0.20 * body.width, 0.69), (0.14, 0.12), edge=0.05
            )
            image += 0.07 * breast
    gas = chest.canvas.ellipse((0.5 + 0.17 * body.width, 0.87 + body.diaphragm), (0.055, 0.03))
    return image - 0.16 * gas


def _vessels(chest: _Chest, body: Body) -> Field:
    """Hila and the markings that fan out of them, fading towards the chest wall."""
    dx, dy = chest.a - 0.085, chest.canvas.y - 0.46
    distance = np.sqrt(dx * dx + dy * dy) + 1e-6
    angle = np.arctan2(dy, dx) + 0.25 * np.sin(23 * distance + 6.28 * body.phase)
    shift = 6.28 * body.phase + np.where(chest.s < 0, 0.0, 2.0)
    fan = (
        np.clip(np.cos(11 * angle + shift), 0, 1) ** 3
        + 0.6 * np.clip(np.cos(17 * angle - shift), 0, 1) ** 4
    )
    hilum = np.exp(-((dx / 0.045) ** 2) - (dy / 0.065) ** 2)
    return 0.17 * hilum + 0.16 * fan * np.exp(-distance / 0.11)


def _mediastinum(chest: _Chest) -> Field:
    c, y = chest.canvas, chest.canvas.y
    image = 0.06 * c.inside(chest.a - 0.055, 0.02) * c.inside(0.2 - y, 0.05)
    image += 0.10 * c.ellipse((0.555, 0.335), (0.038, 0.042), edge=0.012) * chest.lung
    bodies = 0.6 + 0.4 * np.clip(np.cos(6.2832 * y / 0.062) * 3, -1, 1)
    image += 0.055 * c.inside(chest.a - 0.036, 0.008) * bodies
    trachea = c.inside(np.abs(chest.s + 0.004) - 0.017, 0.008) * c.inside(y - 0.38, 0.03)
    return image - 0.13 * trachea


def _bones(chest: _Chest, body: Body) -> Field:
    c, a, y = chest.canvas, chest.a, chest.canvas.y
    cage = c.inside(a - chest.lateral - 0.012, 0.012) * c.inside(0.04 - a, 0.01)
    cage = cage * c.inside(y - 0.90, 0.06)
    shift = 0.075 * body.phase
    behind = np.cos(6.2832 * (y - 0.10 * a - 1.1 * a * a - shift) / 0.075)
    before = np.cos(6.2832 * (y + 0.55 * a - 0.5 * shift) / 0.088)
    image = 0.085 * cage * np.clip((behind - 0.30) * 2.5, 0, 1)
    image += 0.035 * cage * np.clip((before - 0.35) * 2.5, 0, 1) * c.inside(0.10 - a, 0.05)
    line = np.abs(y - (0.235 - 0.30 * a + 0.25 * a * a)) - 0.013
    image += 0.13 * c.inside(line, 0.006) * c.inside(0.035 - a, 0.01) * c.inside(a - 0.40, 0.02)
    for sign in (-1, 1):
        x = 0.5 + sign * 0.425 * body.width
        image += 0.13 * c.ellipse((x, 0.185), (0.045, 0.05), edge=0.012)
        blade = c.ellipse((0.5 + sign * 0.375 * body.width, 0.31), (0.022, 0.12), sign * 0.20, 0.01)
        image += 0.05 * blade
    return image
