"""A picture (an explanation, a heat map, a contour) as a DICOM secondary capture (PS3.3 A.8)."""

import warnings

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from medfed.client.data.lettering import lettering
from medfed.client.data.results.maker import UNVERIFIED, Maker
from medfed.client.data.results.sources import Sources, take_over_identity
from medfed.common.errors import DataError

_MAX_SIDE = 65_535
_LETTER_SHARE = 1 / 40


def capture_object(sources: Sources, picture: npt.NDArray[np.uint8], maker: Maker) -> Dataset:
    """Return `picture` with a strip below it that says what it is, as a secondary capture.

    A viewer shows the pixels whatever it makes of the header, hence the strip.

    Args:
        sources: What the picture is about.
        picture: [H, W], or [H, W, 3] in RGB.
        maker: The model.

    Raises:
        DataError: Another shape or type.
    """
    coloured = picture.ndim == 3 and picture.shape[-1] == 3
    if picture.dtype != np.uint8 or not (coloured or picture.ndim == 2) or not picture.size:
        raise DataError(
            f"Expected a picture of bytes, [H, W] or [H, W, 3], got {picture.dtype} "
            f"{list(picture.shape)}."
        )
    marked = with_strip(picture, f"{maker.model} {maker.model_version}. {UNVERIFIED}")
    if max(marked.shape) > _MAX_SIDE:
        raise DataError(f"Expected sides of at most {_MAX_SIDE}, got {list(picture.shape)}.")
    try:
        with warnings.catch_warnings():
            # Odd values of source headers, which are the hospital's own.
            warnings.simplefilter("ignore")
            made = SCImage.from_ref_dataset(
                ref_dataset=sources.first,
                pixel_array=marked,
                photometric_interpretation="RGB" if coloured else "MONOCHROME2",
                bits_allocated=8,
                coordinate_system="PATIENT",
                patient_orientation=("L", "P"),
                **maker.equipment(),
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"These images cannot have a secondary capture: {error}.") from None
    # How the picture lies is not known: empty, as the standard allows.
    made.PatientOrientation = made.Laterality = ""
    made.BurnedInAnnotation = "NO"  # no words that tell who the patient is
    made.DerivationDescription = UNVERIFIED
    made.SourceImageSequence = [_reference(one) for one in sources.headers]
    take_over_identity(made, sources.first)
    return made


def with_strip(picture: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    """Return `picture` with lines of `text` below it, white on black, broken to its width."""
    width = picture.shape[1]
    font = lettering(max(10, round(max(picture.shape[:2]) * _LETTER_SHARE)))
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width - 4:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    top, bottom = font.getbbox("Ag")[1], font.getbbox("Ag")[3]
    height = int(bottom + max(2, top)) + 1
    strip = Image.new("L", (width, height * len(lines)), 0)
    drawing = ImageDraw.Draw(strip)
    for number, words in enumerate(lines):
        drawing.text((2, number * height), words, fill=255, font=font)
    below = np.asarray(strip, dtype=np.uint8)
    if picture.ndim == 3:
        below = np.repeat(below[:, :, None], 3, axis=2)
    return np.concatenate([picture, below])


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item
