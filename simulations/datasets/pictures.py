"""Decodes pictures with Pillow. What is wrong with one surfaces when it is read, so it is counted.

Shapes: H height, W width.
"""

from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.common.errors import UnreadableImageError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})


def list_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the picture files of `folder` by name, without hidden ones and subfolders' own."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )


def read_picture(path: Path, mode: Literal["L", "RGB"]) -> npt.NDArray[np.uint8]:
    """Return the picture at `path` as uint8 [H, W] (L, by luma) or [H, W, 3] (RGB).

    A palette is applied and transparency is left out, not blended.

    Raises:
        UnreadableImageError: No picture, a damaged one, or one with more than 8 bits a channel,
            which Pillow would cut off rather than scale.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise UnreadableImageError(
                    f"{path}: expected 8 bits a channel, got mode {picture.mode}. Convert it, or "
                    "leave it out."
                )
            return np.asarray(picture.convert(mode), dtype=np.uint8)
    # Pillow reports damage with all of these, depending on the format and on where it is.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"{path} cannot be decoded ({error}). Fetch it again, or leave it out."
        ) from None


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Return uint8 [H, W], 1 where the mask at `path` is brighter than half.

    Raises:
        UnreadableImageError: As `read_picture`.
    """
    # Through the palette: some masks have one that turns stored 0 into white.
    return (read_picture(path, "L") > 127).astype(np.uint8)


def refuse(reason: str) -> NoReturn:
    """Stand in for the reader of an image that is known to be of no use.

    Raises:
        UnreadableImageError: Always, with `reason`.
    """
    raise UnreadableImageError(reason)
