"""Distances between the surfaces of two structures in one image, 2-D or 3-D.

The surface of a structure is those of its pixels that touch its outside, over an edge (2-D) or a
face (3-D); the border of the image counts as outside. As MONAI does, and tested against it; here
both figures share one pair of distance maps.
"""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]


def surface_distances(one: Mask, other: Mask, spacing: float = 1.0) -> tuple[Distances, Distances]:
    """Return the distance of each surface pixel to the other structure's nearest one.

    Args:
        one: A structure that has at least one pixel, [*S].
        other: Another one.
        spacing: Distance of neighbouring pixels; the unit of what is returned.

    Returns:
        From `one` to `other`, and back; one number a surface pixel.
    """
    from scipy import ndimage  # takes a seventh of a second to import, and only masks need it

    either = one | other
    # Nothing lies outside the box that holds both, so distances in it are those in the image.
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in (np.nonzero(either)))
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (one[box], other[box])]
    return (
        _nearest(surfaces[1], spacing)[surfaces[0]],
        _nearest(surfaces[0], spacing)[surfaces[1]],
    )


def _nearest(surface: Mask, spacing: float) -> Distances:
    """Distance of every pixel to the nearest one of `surface`."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~surface), dtype=np.float64) * spacing


def hd95(distances: tuple[Distances, Distances]) -> float:
    """Return the 95th percentile Hausdorff distance: the larger one of the two directions."""
    return max(float(np.percentile(part, 95)) for part in distances)


def surface_dice(distances: tuple[Distances, Distances], tolerance: float) -> float:
    """Return the share of both surfaces that lies within `tolerance` of the other one.

    Reference: Nikolov et al. 2021, https://doi.org/10.2196/26151 (here by counting pixels).
    """
    close = sum(int((part <= tolerance).sum()) for part in distances)
    return close / sum(len(part) for part in distances)
