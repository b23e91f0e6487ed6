"""Reads an archive's images for a store: as a radiologist sees them, without burnt-in text.

A store holds pixels, labels and pseudonyms. Of the identities in an archive only those that are
written into the pixels could get there: they are found and painted over, or the image is refused.

Shapes: F frames or slices, D, H, W as in `medfed.client.data.dicom.volume`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.inventory import Series
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.picture_files import read_picture_file
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.deidentification.burnt_in import clean_pixels
from medfed.client.data.deidentification.header_facts import TextFacts, text_facts
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.dicom.decoding import read_pixels
from medfed.client.data.dicom.display import to_display
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.dicom.presets import Window
from medfed.client.data.dicom.volume import read_series
from medfed.common.errors import UnreadableImageError

Picture = npt.NDArray[np.uint8]

# A PNG may be a screen shot.
_UNKNOWN = TextFacts(declared=False, possible=True, looked_for=True, regions=())


@dataclass(frozen=True)
class CleanReader:
    """How the images of one data set are read.

    Attributes:
        window: How values become grey.
        limits: What a file is held to.
        rules: What becomes of burnt-in text.
    """

    window: Window
    limits: ReadLimits
    rules: Rules

    def image(self, path: Path, frame: int, kind: str) -> Picture:
        """Return one frame of a DICOM file, or a picture: [H, W] or [H, W, 3].

        Raises:
            UnreadableImageError: It cannot be read, or holds text that the rules refuse.
        """
        try:
            before = path.stat()
        except OSError as error:
            raise UnreadableImageError(
                f"{path} cannot be read: {error.strerror}. Run this again when nothing writes "
                "there."
            ) from None
        version = (before.st_size, before.st_mtime_ns)
        picture: Picture = _frames_of(self, path, kind, version)[frame]
        return picture

    def volume(self, series: Series) -> Picture:
        """Return a series as one volume, [D, H, W] or [D, H, W, C].

        Raises:
            UnreadableImageError: It cannot be read, or may hold text: slices are looked at for it
                before they become a volume, which `medfed data deidentify` does.
        """
        if series.kind == "dicom" and self.rules.burnt_in != "keep":
            with parsing():
                facts = text_facts(read_pixels(series.files[0], self.limits).header)
            if facts.possible:
                raise UnreadableImageError(
                    f"{series.files[0]}: expected a volume that a scanner measured, got pictures "
                    "that may hold burnt-in text. Run medfed data deidentify on them and prepare "
                    'the copies with burnt_in = "keep".'
                )
        return read_series(series, self.window, self.limits)[0]

    def frames(self, path: Path, kind: str) -> Picture:
        """Return all frames of a file, [F, H, W] or [F, H, W, 3], without text."""
        if kind == "picture":
            pixels, facts = read_picture_file(path, self.limits)[None], _UNKNOWN
        else:
            decoded = read_pixels(path, self.limits)
            with parsing():
                facts = text_facts(decoded.header)
            shown = to_display(decoded, self.window)
            pixels = shown[None] if len(decoded.values) == 1 else shown
        # What a scanner measured has no text on it; looking costs more than decoding.
        if not facts.possible:
            return pixels
        return np.asarray(clean_pixels(pixels, facts, self.rules).pixels, np.uint8)


@functools.lru_cache(maxsize=1)
def _frames_of(reader: CleanReader, path: Path, kind: str, version: tuple[int, int]) -> Picture:
    """All frames of the file read last: its images follow one another, and are decoded once."""
    try:
        return reader.frames(path, kind)
    except FileProblem as problem:
        raise problem.of(path) from None
    except UnreadableImageError as error:
        named = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise UnreadableImageError(named) from None
