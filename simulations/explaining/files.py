"""Reads the file of an examination, by the same readers as the data sets' files.

Shapes: H, W pixels, D, H, W voxels (right, anterior, superior), C channels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.common.errors import UnreadableImageError
from medfed.common.study import DataSection
from medfed.simulations.datasets.pictures import read_picture

_VOLUMES = (".nii", ".nii.gz")
_DICOM_MAGIC = (128, b"DICM")
_MANY_CHANNELS = {2: "LA", 4: "RGBA"}


@dataclass(frozen=True)
class FileImage:
    """A decoded file.

    Attributes:
        pixels: 0..255, [H, W], [H, W, C], [D, H, W] or [D, H, W, C].
        spacing_mm: Size of a voxel; None for pictures.
    """

    pixels: npt.NDArray[np.generic]
    spacing_mm: tuple[float, ...] | None


def read_file(path: Path, section: DataSection) -> FileImage:
    """Decode PNG, JPEG or TIFF for a study of images, NIfTI for a study of volumes.

    Raises:
        UnreadableImageError: Another format, the wrong kind for the study, or a damaged file.
    """
    if _is_dicom(path):
        raise UnreadableImageError(
            f"{path} is DICOM, which this command does not read. Export it as PNG, or a series as "
            "NIfTI, with the window that the study's images have."
        )
    is_volume = path.name.lower().endswith(_VOLUMES)
    if is_volume != (section.dimensions == 3):
        expected = "a volume (.nii, .nii.gz)" if section.dimensions == 3 else "PNG, JPEG or TIFF"
        raise UnreadableImageError(
            f"{path}: expected {expected}, since data.dimensions = {section.dimensions}."
        )
    return _read_volume(path) if is_volume else FileImage(_read_pixels(path, section), None)


def _is_dicom(path: Path) -> bool:
    offset, magic = _DICOM_MAGIC
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(len(magic)) == magic


def _read_volume(path: Path) -> FileImage:
    # nibabel takes a while to import, and only volumes need it.
    from medfed.client.data.nifti import read_geometry, read_volume, rescale_intensity

    spacing_mm = read_geometry(path).spacing_mm
    return FileImage(rescale_intensity(read_volume(path), str(path)), spacing_mm)


def _read_pixels(path: Path, section: DataSection) -> npt.NDArray[np.uint8]:
    if section.channels == 3:
        return read_picture(path, "RGB")
    grey = read_picture(path, "L")
    if section.channels == 1:
        return grey
    with Image.open(path) as picture:
        if picture.mode != _MANY_CHANNELS[section.channels]:
            return grey
        return np.asarray(picture, dtype=np.uint8)
