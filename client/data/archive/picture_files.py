"""PNG, JPEG and TIFF pictures of an archive.

A picture has no window. One of 8 bits is shown as it is; of one with 16 bits it is not known how
many are in use, so the smallest of 8, 10, 12, 14 and 16 that hold its brightest value are taken.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem, limit_exceeded

# By content: what Pillow would make of another format is not asked.
# JPEG opens MPO, too: several pictures in one file.
_FORMATS = ("PNG", "JPEG", "TIFF")
_USED_BITS = (8, 10, 12, 14, 16)
_GREY_MODES = frozenset({"1", "L", "LA"})
_DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})


def picture_facts(path: Path, limits: ReadLimits) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return rows, columns[, samples] of a picture as it is shown, and notes; not its pixels.

    Raises:
        FileProblem: Damaged, of several pages, or beyond the limits.
    """
    with _opened(path, limits) as picture:
        columns, rows = picture.size
        if _quarter_turned(picture):
            rows, columns = columns, rows
        deep = picture.mode in _DEEP_MODES
        grey = deep or picture.mode in _GREY_MODES or picture.mode == "F"
        notes = ("it has more than 8 bits and states no window",) if deep else ()
        return (rows, columns) if grey else (rows, columns, 3), notes


def read_picture_file(path: Path, limits: ReadLimits) -> npt.NDArray[np.uint8]:
    """Return the picture at `path` as uint8 [H, W] if it is grey, else [H, W, 3].

    A palette is applied, transparency left out, and a camera's orientation mark obeyed.

    Raises:
        FileProblem: As `picture_facts`.
    """
    with _opened(path, limits) as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in _DEEP_MODES:
            values = np.asarray(upright)
            if values.min(initial=0) < 0 or values.max(initial=0) >= 1 << 16:
                raise FileProblem(
                    "Expected at most 16 bits a pixel, got more. Convert the picture."
                )
            highest = int(values.max(initial=0))
            bits = next(bits for bits in _USED_BITS if highest < 1 << bits)
            return np.rint(values * (255 / ((1 << bits) - 1))).astype(np.uint8)
        if upright.mode == "F":
            raise FileProblem(
                "Expected whole numbers as pixels, got floating point. Convert the picture to "
                "PNG, or to .nii.gz."
            )
        grey = upright.mode in _GREY_MODES
        return np.asarray(upright.convert("L" if grey else "RGB"), dtype=np.uint8)


@contextmanager
def _opened(path: Path, limits: ReadLimits) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Odd metadata, and sizes over Pillow's own limit: ours decides.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as picture:
                _check(picture, path.stat().st_size, limits)
                yield picture
    except FileProblem:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        raise
    except Image.DecompressionBombError as error:
        raise limit_exceeded(f"{error} Convert it to DICOM, or leave it out.") from None
    # Damage surfaces as whatever the format's reader stumbles over.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileProblem(
            f"Expected a sound picture, got a damaged one ({reason}). Fetch it again."
        ) from None


def _check(picture: Image.Image, size: int, limits: ReadLimits) -> None:
    samples = len(picture.getbands())
    values = picture.width * picture.height * samples
    refused = limits.against_pixels(values, 1, values * 2, size)
    if refused:
        raise limit_exceeded(refused)
    pages = getattr(picture, "n_frames", 1)
    if picture.format == "TIFF" and pages > 1:
        raise FileProblem(
            f"Expected a TIFF of one page, got {pages}. Export its pages one by one, or the "
            "volume as .nii.gz.",
            "TIFF of several pages",
        )


def _quarter_turned(picture: Image.Image) -> bool:
    # Exif orientations 5 to 8 exchange the sides.
    return picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
