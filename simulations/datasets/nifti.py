"""NIfTI volumes of public data sets: read as a hospital's are (`medfed.client.data.nifti`)."""

from medfed.client.data.nifti import (
    Geometry,
    check_same_geometry,
    read_geometry,
    read_labels,
    read_volume,
    rescale_intensity,
)

__all__ = [
    "Geometry",
    "check_same_geometry",
    "read_geometry",
    "read_labels",
    "read_volume",
    "rescale_intensity",
]
