"""An axial chest CT slice in the patient's frame, in Hounsfield units, then windowed to 0..1.

Seen from the feet: the patient's right is at the image's left, the back and the table are below.
"""

from dataclasses import dataclass

import numpy as np

from medfed.simulations.phantom.canvas import Canvas, Field
from medfed.simulations.phantom.findings import Body, Finding

# Wide enough to show lung and mediastinum at once.
WINDOW_HU = (-1000.0, 350.0)
AIR_HU, LUNG_HU, FAT_HU, MUSCLE_HU, BONE_HU, FLUID_HU = -1000.0, -850.0, -95.0, 45.0, 420.0, 8.0


@dataclass(frozen=True)
class _Lung:
    """One lung: which side, its border (1 on the ellipse) and its coverage."""

    sign: float
    centre: tuple[float, float]
    radii: tuple[float, float]
    coverage: Field


def paint_ct(
    canvas: Canvas, body: Body, findings: tuple[Finding, ...]
) -> tuple[Field, dict[str, Field]]:
    """Return the windowed slice 0..1 and each finding's coverage 0..1 by kind. Both [H, W]."""
    hu = _trunk(canvas, body)
    middle = _mediastinum(canvas, body)
    lungs = [_lung(canvas, body, sign) for sign in (-1.0, 1.0)]
    air = np.maximum(lungs[0].coverage, lungs[1].coverage) * (1 - middle)
    hu += air * (LUNG_HU - hu)
    hu += air * _vessels(canvas, body)
    coverage: dict[str, Field] = {}
    for finding in findings:
        lung = lungs[0] if finding.side == "right" else lungs[1]
        shape, density = _finding(canvas, body, lung, finding)
        shape = shape * air
        hu += finding.contrast * shape * (density - hu)
        coverage[finding.kind] = shape
    _add_great_vessels(canvas, body, hu)
    _add_bones(canvas, body, hu)
    low, high = WINDOW_HU
    return np.clip((hu - low) / (high - low), 0.0, 1.0), coverage


def _blend(hu: Field, coverage: Field, value: float | Field) -> None:
    """Put tissue of `value` where `coverage` is 1, in place."""
    hu += coverage * (value - hu)


def _trunk(canvas: Canvas, body: Body) -> Field:
    hu = np.full_like(canvas.x, AIR_HU)
    # The table is concave; its foam is barely denser than air.
    table = canvas.y - (0.865 - 0.30 * (canvas.x - 0.5) ** 2)
    _blend(hu, canvas.inside(np.abs(table - 0.02) - 0.016), -880.0)
    _blend(hu, canvas.inside(np.abs(table) - 0.005), -150.0)
    width, depth = 0.425 * body.width + 0.03 * body.girth, 0.30 + 0.03 * body.girth
    skin = np.clip(canvas.radius((0.5, 0.515), (width, depth)), 1e-6, None)
    if body.breasts:
        for sign in (-1, 1):
            place = (0.5 + sign * 0.20 * body.width, 0.285)
            _blend(hu, canvas.ellipse(place, (0.155, 0.080), sign * 0.30), FAT_HU)
            gland = canvas.ellipse((place[0], place[1] - 0.025), (0.05, 0.025), edge=0.03)
            _blend(hu, 0.6 * gland, 20.0)
    _blend(hu, canvas.inside((skin - 1) * depth), FAT_HU)
    fat = 0.018 + 0.045 * body.girth
    _blend(hu, canvas.ellipse((0.5, 0.515), (width - fat, depth - fat)), MUSCLE_HU)
    return hu


def _lung(canvas: Canvas, body: Body, sign: float) -> _Lung:
    centre = (0.5 + sign * 0.195 * body.width, 0.485)
    radii = (0.152 * body.width, 0.205)
    # Pointed in front, full at the back: the radius shrinks towards the sternum.
    dx = (canvas.x - centre[0]) / radii[0]
    dy = (canvas.y - centre[1]) / radii[1]
    lean = dx + sign * 0.22 * dy * (dy < 0) * -1
    rho = (np.abs(lean) ** 2.3 + np.abs(dy) ** 2.3) ** (1 / 2.3)
    return _Lung(sign, centre, radii, canvas.inside((rho - 1) * radii[0]))


def _mediastinum(canvas: Canvas, body: Body) -> Field:
    middle = canvas.ellipse((0.5, 0.47), (0.075, 0.21))
    size = body.heart * 0.80
    heart = canvas.ellipse((0.5 + 0.045 * body.width, 0.415), (size, 0.72 * size), 0.45, 0.008)
    return np.maximum(middle, heart)


def _vessels(canvas: Canvas, body: Body) -> Field:
    """Branching vessels, in HU over lung: a fan from the hilum, cut into spots further out."""
    a = np.abs(canvas.x - 0.5)
    dx, dy = a - 0.075, canvas.y - 0.49
    distance = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx) + 0.3 * np.sin(30 * distance + 6.28 * body.phase)
    shift = 6.28 * body.phase + np.where(canvas.x < 0.5, 0.0, 1.7)
    fan = np.clip(np.cos(9 * angle + shift), 0, 1) ** 4
    spots = np.clip(np.cos(21 * angle - shift), 0, 1) ** 3
    spots = spots * np.clip(np.cos(150 * distance + 3 * shift), 0, 1) ** 2
    # Blood settles: the dependent lung is a little denser.
    gradient = 60 * (canvas.y - 0.4)
    vessels: Field = 620 * fan * np.exp(-((distance / 0.085) ** 2)) + 330 * spots
    return vessels + gradient


def _finding(
    canvas: Canvas, body: Body, lung: _Lung, finding: Finding
) -> tuple[Field, float | Field]:
    if finding.kind == "effusion":
        # Fluid lies at the back: what the lung leaves free when it floats forward.
        raised = (lung.centre[0] - lung.sign * 0.02, lung.centre[1] - finding.extent)
        free = canvas.radius(raised, (lung.radii[0] * 1.12, lung.radii[1] * 1.02))
        below = canvas.inside(lung.centre[1] - canvas.y, 0.02)
        shape = canvas.inside((1 - free) * lung.radii[0], 0.008) * below
        return shape * lung.coverage, FLUID_HU
    centre = (0.5 + (finding.centre[0] - 0.5) * body.width, finding.centre[1])
    rho = canvas.radius(centre, (finding.extent, finding.extent))
    if finding.kind == "nodule":
        return canvas.inside((rho - 1) * finding.extent, 0.008), 35.0
    angle = np.arctan2(canvas.y - centre[1], canvas.x - centre[0])
    turn = 6.28 * body.phase
    ragged = 1 + 0.16 * np.cos(2 * angle + turn) + 0.10 * np.cos(5 * angle - 2 * turn)
    mottle = np.cos(83 * canvas.x + turn) * np.cos(71 * canvas.y + 31 * canvas.x - turn)
    shape = canvas.inside((rho / ragged - 1 + 0.12 * mottle) * finding.extent, 0.035)
    # Air bronchograms: dark branches through the airless lung, from the hilum outwards.
    branch = np.cos(9 * np.arctan2(canvas.y - 0.49, np.abs(canvas.x - 0.5) - 0.05) + turn)
    return shape, 20.0 - 420.0 * np.clip(branch, 0, 1) ** 12 - 90.0 * (mottle > 0.5)


def _add_great_vessels(canvas: Canvas, body: Body, hu: Field) -> None:
    _blend(hu, canvas.ellipse((0.5 + 0.066 * body.width, 0.615), (0.031, 0.031)), 65.0)
    _blend(hu, canvas.ellipse((0.47, 0.36), (0.030, 0.030)), 65.0)
    for sign in (-1, 1):
        _blend(hu, canvas.ellipse((0.5 + sign * 0.042, 0.505), (0.014, 0.012)), AIR_HU)


def _add_bones(canvas: Canvas, body: Body, hu: Field) -> None:
    spine = 0.685
    _blend(hu, canvas.ellipse((0.5, spine), (0.050, 0.042)), BONE_HU)
    _blend(hu, canvas.ellipse((0.5, spine), (0.038, 0.030)), 190.0)
    for sign in (-1, 1):
        wing = canvas.ellipse((0.5 + sign * 0.062, spine + 0.055), (0.05, 0.013), sign * 0.35)
        _blend(hu, wing, 330.0)
    _blend(hu, canvas.ellipse((0.5, spine + 0.085), (0.010, 0.038)), 330.0)
    _blend(hu, canvas.ellipse((0.5, spine + 0.047), (0.018, 0.016)), 25.0)
    _blend(hu, canvas.ellipse((0.5, 0.262), (0.045, 0.013)), 260.0)
    # Ribs cross the slice obliquely, so each shows as a short arc of the chest wall.
    wall = canvas.radius((0.5, 0.49), (0.363 * body.width, 0.232))
    ring = canvas.inside((np.abs(wall - 1) * 0.232) - 0.011)
    turn = np.arctan2(canvas.y - 0.49, np.abs(canvas.x - 0.5))
    arcs = canvas.inside(0.25 - np.cos(8 * turn + 6.28 * body.phase), 0.15)
    _blend(hu, ring * arcs * canvas.inside(0.10 - np.abs(canvas.x - 0.5), 0.02), BONE_HU)
