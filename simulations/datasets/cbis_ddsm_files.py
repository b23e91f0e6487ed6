"""Finds and reads CBIS-DDSM's images, which lie elsewhere than its tables say.

A path of the tables is <case>/<study UID>/<series UID>/000000.dcm, with a line break at its end
at times. On disk it is one of

    CBIS-DDSM/<case>/<study UID>/<series UID>/1-1.dcm
    CBIS-DDSM/<case>/07-20-2016-DDSM-NA-30288/1.000000-full mammogram images-24515/1-1.dcm
    jpeg/<series UID>/1-263.jpg

The mask and the cropped image of an abnormality share a folder, or have one each, and which of two
files is which changes from case to case, in the tables as well: a mask is known by its two values.

Shapes: H height, W width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.dicoms import read_grey
from medfed.simulations.datasets.pictures import read_picture

_CASE = re.compile(r"(?:Mass|Calc)-(?:Training|Test)_P_\d{5}_(?:LEFT|RIGHT)_(?:CC|MLO)(?:_\d+)?")

# JPEG leaves values near the two of a mask, and few in between.
_NEAR, _SHARE = 24, 0.99


@dataclass(frozen=True)
class Mammograms:
    """Folders of images.

    Attributes:
        base: Holds a folder a case (DICOM) or a series (JPEG).
        suffix: Of the images.
    """

    base: Path
    suffix: str

    def image(self, path: str) -> Path | None:
        """Return the mammogram that a table's path names, if it is there."""
        files = self._files(path)
        return files[0] if files else None

    def outline(self, paths: Sequence[str]) -> tuple[Path, ...]:
        """Return the files, mask and crop, of the series that a table's paths name."""
        return tuple(sorted({file for path in paths for file in self._files(path)}))

    def _files(self, path: str) -> list[Path]:
        parts = _split(path)
        if not _is_known(parts):
            return []
        case, study, series, _ = parts
        if self.suffix == ".jpg":
            return _list(self.base / series, self.suffix)
        exact = _list(self.base / case / study / series, self.suffix)
        if exact:
            return exact
        # Names of studies and series that say what they hold; a case has one of each, or two
        # series where mask and crop lie apart.
        return [
            file
            for day in _folders(self.base / case)
            for one in _folders(day)
            for file in _list(one, self.suffix)
        ]


def find_mammograms(root: Path) -> Mammograms | None:
    """Return the images at `root`, the folder of the tables, if there are any."""
    for base in (root / "CBIS-DDSM", root, *sorted(root.glob("manifest-*/CBIS-DDSM"))):
        if any(_CASE.fullmatch(folder.name) for folder in _folders(base)):
            return Mammograms(base, ".dcm")
    if (root / "jpeg").is_dir():
        return Mammograms(root / "jpeg", ".jpg")
    return None


def case_of(path: str, where: str) -> str:
    """Return the case that a table's path names.

    Raises:
        DataError: Another kind of path; `where` says whose.
    """
    parts = _split(path)
    if not _is_known(parts):
        raise DataError(
            f"{where}: expected Mass-Training_P_00001_LEFT_CC/<study>/<series>/000000.dcm or the "
            f"like, got {path.strip()!r}. Restore the published row."
        )
    return parts[0]


def read_mammogram(path: Path) -> npt.NDArray[np.generic]:
    """Return the mammogram at `path`, uint8 or float32 [H, W], 0..255.

    DICOM values are scaled by the bits that they use: film was digitised to its whole range.

    Raises:
        UnreadableImageError: It cannot be decoded.
    """
    if path.suffix != ".dcm":
        return read_picture(path, "L")
    image = read_grey(path)
    scaled: npt.NDArray[np.float32] = image.values * np.float32(255 / (2**image.bits - 1))
    return scaled.clip(0, 255)


def read_outlines(outlines: Sequence[Sequence[Path]], index: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [H, W], `index` within one of the abnormalities.

    Args:
        outlines: Files of each abnormality: its mask among others.
        index: Of the structure.

    Raises:
        UnreadableImageError: No mask among the files of one, or masks of several sizes.
    """
    masks = [_read_mask(paths) for paths in outlines]
    sizes = {mask.shape for mask in masks}
    if len(sizes) > 1:
        raise UnreadableImageError(
            f"{outlines[0][0].parent.name}: expected masks of one size for one mammogram, got "
            f"{', '.join(str(list(size)) for size in sorted(sizes))}. Leave it out."
        )
    united: npt.NDArray[np.uint8] = np.logical_or.reduce(masks).astype(np.uint8)
    return united * np.uint8(index)


def _read_mask(paths: Sequence[Path]) -> npt.NDArray[np.bool_]:
    images = [np.asarray(read_mammogram(path)) for path in paths]
    masks = [image for image in images if _is_mask(image)]
    if not masks:
        raise UnreadableImageError(
            f"Expected a mask of black and white among {', '.join(path.name for path in paths)} of "
            f"{paths[0].parent}, got none. Fetch the series again."
        )
    # A crop may be black and white by chance; it is the smaller one.
    largest = max(masks, key=lambda image: image.size)
    bright: npt.NDArray[np.bool_] = largest > largest.max() / 2
    return bright


def _is_mask(image: npt.NDArray[np.generic]) -> bool:
    values = image.astype(np.float32)
    top = float(values.max())
    extreme = (values <= _NEAR * top / 255) | (values >= top - _NEAR * top / 255)
    return top > 0 and float(extreme.mean()) >= _SHARE


def _is_known(parts: Sequence[str]) -> bool:
    # No part may lead out of the folder.
    return len(parts) == 4 and bool(_CASE.fullmatch(parts[0])) and ".." not in parts


def _split(path: str) -> list[str]:
    return path.strip().replace("\\", "/").split("/")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _list(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == suffix and not path.name.startswith(".")
    )
