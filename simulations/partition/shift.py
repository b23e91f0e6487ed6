"""Feature shift: a site's images as that site's own scanner would have taken them.

The physics are the phantom's (noise, tone, sharpness, brightness, collimation), put on pictures
that exist already. Nothing moves, so masks fit as before. A site has one scanner; each image has
its own exposure, collimation and noise, drawn from its record alone.

Shapes: C channels of all views, *S spatial: H, W for images and D, H, W for volumes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medfed.client.data.store import Store
from medfed.common.seeding import derive_seed, numpy_rng
from medfed.common.study.shift import ShiftSection
from medfed.simulations.phantom.canvas import Field
from medfed.simulations.phantom.findings import Modality
from medfed.simulations.phantom.scanners import Scanner, expose, make_scanners

Pixels = npt.NDArray[np.uint8]


def site_scanners(names: Sequence[str], section: ShiftSection, seed: int) -> Mapping[str, Scanner]:
    """Return the scanner of each site: as different as the phantom's, scaled by strength.

    Of each four sites, in order of name, one is in each quarter of the range of every quantity.
    """
    drawn = make_scanners(derive_seed(seed, "feature shift"), len(names), num_classes=1)
    return {
        name: _scaled(scanner, section) for name, scanner in zip(sorted(names), drawn, strict=True)
    }


def shift_image(
    store: Store, row: int, scanner: Scanner, section: ShiftSection, seed: int
) -> Pixels:
    """Return image `row` of `store`, uint8 [C, *S], as `scanner` takes it.

    Views are exposures of their own; the channels of one are of one exposure, so that grey stays
    grey. A volume is exposed slice by slice. Padding and views that are missing stay black.
    """
    image_CS = np.array(store.images_NCHW[row])
    volume = image_CS.ndim == 4
    modality: Modality = "ct" if _circle(section, volume) else "xray"
    num_views = max(1, len(store.views))
    per_view = len(image_CS) // num_views
    extent = image_CS.shape[1:] if store.shapes is None else tuple(store.shapes[row].tolist())
    inside = tuple(slice(side) for side in extent)
    for channel, whole in enumerate(image_CS):
        view = channel // per_view
        if store.present is not None and not store.present[row, view]:
            continue
        part = whole[inside]
        slices = part if volume else part[None]
        for number, picture in enumerate(slices):
            rng = numpy_rng(seed, "feature shift", store.record_ids[row], view, number)
            brightness = _expose(picture / 255.0, scanner, rng, modality)
            picture[...] = np.rint(255 * brightness).astype(np.uint8)
    return image_CS


def _circle(section: ShiftSection, volume: bool) -> bool:
    return section.collimation == "circle" or (section.collimation == "auto" and volume)


def _expose(
    picture_HW: Field,
    scanner: Scanner,
    rng: np.random.Generator,
    modality: Modality,
) -> Field:
    """Expose a picture of any proportions: the detector is the square around it."""
    height, width = picture_HW.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    margins = ((top, side - height - top), (left, side - width - left))
    exposed = expose(scanner, np.pad(picture_HW, margins, mode="edge"), rng, modality=modality)
    return exposed[top : top + height, left : left + width]


def _scaled(scanner: Scanner, section: ShiftSection) -> Scanner:
    by = section.strength
    return replace(
        scanner,
        noise=by * scanner.noise,
        gamma=scanner.gamma**by,
        contrast=scanner.contrast**by,
        zoom=1.0,
        offset=by * scanner.offset,
        blur=by * scanner.blur,
        # Blades that are not in the picture: nothing is shut out.
        border=0.0 if section.collimation == "none" else by * scanner.border,
        heel=by * scanner.heel,
        # A letter in the picture would tell the site apart by itself.
        marker=False,
    )
