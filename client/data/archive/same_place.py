"""Whether volumes of one examination lie on one another: only then is a mask of one that of all."""

from collections.abc import Sequence

import numpy as np

from medfed.client.data.archive.inventory import Series, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.labels.grid import TOLERANCE, read_grid
from medfed.client.data.nifti import Geometry, read_geometry
from medfed.common.errors import UnreadableImageError


def check_same_place(series: Sequence[Series], limits: ReadLimits) -> None:
    """Refuse volumes of which a voxel is not in the same place as that of the first one.

    Args:
        series: DICOM or NIfTI volumes.
        limits: What their headers are held to.

    Raises:
        UnreadableImageError: They are of different shape or place, one says not where it is, or a
            header cannot be read.
    """
    frame, first = _place(series[0], limits)
    corners = _corners(first)
    for one in series[1:]:
        own_frame, own = _place(one, limits)
        is_same = own.shape == first.shape and (not frame or not own_frame or frame == own_frame)
        apart_mm = np.abs(_corners(own) - corners).max() if is_same else np.inf
        if apart_mm > TOLERANCE * min(first.spacing_mm):
            raise UnreadableImageError(
                f"Expected all views where the mask is, got {printable(one.files[0])}, which does "
                f"not lie on {printable(series[0].files[0])} voxel by voxel. Register and resample "
                "them, or leave the view out of data.views."
            )


def _place(series: Series, limits: ReadLimits) -> tuple[str, Geometry]:
    """Frame of reference, empty if it is not known, and geometry."""
    if series.kind == "nifti":
        return "", read_geometry(series.files[0])
    grid = read_grid(series, limits)
    return grid.frame_of_reference, grid.geometry()


def _corners(geometry: Geometry) -> np.ndarray:
    """The eight corner voxels in mm, [8, 3]."""
    ends = np.array(np.meshgrid(*([0, side - 1] for side in geometry.shape[:3]))).reshape(3, -1)
    corners: np.ndarray = (geometry.affine[:3, :3] @ ends).T + geometry.affine[:3, 3]
    return corners
