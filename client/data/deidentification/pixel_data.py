"""Burnt-in text in the pixel data of a data set, compressed or not."""

import warnings

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medfed.client.data.deidentification.burnt_in import (
    Pixels,
    clean_pixels,
    mask,
    sampled_frames,
)
from medfed.client.data.deidentification.codestream import blanked_fragments
from medfed.client.data.deidentification.header_facts import TextFacts
from medfed.client.data.deidentification.report import Report
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.text_marks import Box
from medfed.common.errors import UnreadableImageError

_PIXEL_DATA = 0x7FE00010
# More than any picture has: a header that asks for it is damaged, or meant to harm.
_MOST_PIXELS = 1 << 31


def clean_pixel_data(dataset: Dataset, facts: TextFacts, rules: Rules, report: Report) -> None:
    """Look for burnt-in text in `dataset` and paint it over in place, or refuse the data set.

    Pixels without text stay as they are, bit for bit, but for comments inside compressed ones.
    Painted ones that were compressed are written uncompressed.

    Raises:
        UnreadableImageError: Text that the rules refuse, or pixels that cannot be decoded in an
            object that may carry text.
    """
    if _PIXEL_DATA not in dataset:
        return
    num_frames = _num_frames(dataset)
    looked_for = facts.looked_for and rules.burnt_in != "keep"
    sample = _decoded(dataset, sampled_frames(num_frames)) if looked_for else None
    if sample is not None:
        cleaned = clean_pixels(sample, facts, rules, lambda pixels: _shown(dataset, pixels))
        if cleaned.boxes:
            _repaint(dataset, cleaned.boxes, num_frames)
            # Of one picture in six some letters stay (ADR 17): NO is for a person to say.
            dataset.BurnedInAnnotation = "YES"
        report.boxes = cleaned.boxes
    elif facts.possible and looked_for:
        raise UnreadableImageError(
            "The pixels cannot be decoded, so that nobody can tell whether text is burnt in. "
            "Convert the file to another transfer syntax, or leave it out."
        )
    else:
        report.notes.append("pixels were not looked at for text")
    _blank_comments(dataset, report)


def _num_frames(dataset: Dataset) -> int:
    """Return the number of frames; 0, of which none can be decoded, if the header's is none."""
    try:
        return max(int(dataset.get("NumberOfFrames") or 1), 0)
    except (TypeError, ValueError):
        return 0


def _decoded(dataset: Dataset, frames: list[int]) -> Pixels | None:
    """Return stored values [F, H, W] or RGB [F, H, W, 3] of these frames; None if undecodable."""
    sides = (dataset.get(name) or 1 for name in ("Rows", "Columns", "SamplesPerPixel"))
    with warnings.catch_warnings():
        # A decoder's remarks on a frame; one that it cannot decode raises.
        warnings.simplefilter("ignore")
        try:
            if int(np.prod([int(side) for side in sides])) * len(frames) > _MOST_PIXELS:
                return None
            return np.stack([np.asarray(pixel_array(dataset, index=frame)) for frame in frames])
        except Exception:  # every decoder raises its own
            return None


def _shown(dataset: Dataset, pixels: Pixels) -> Pixels:
    """Return the colours of palette indices; other values as they are."""
    if dataset.get("PhotometricInterpretation") != "PALETTE COLOR":
        return pixels
    colours = np.stack([apply_color_lut(frame, dataset) for frame in pixels])
    return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours


def _repaint(dataset: Dataset, boxes: tuple[Box, ...], num: int) -> None:
    """Write all frames with the boxes painted, in the byte order and VR of the file."""
    pixels = _decoded(dataset, list(range(num)))
    if pixels is None:
        raise UnreadableImageError(
            "Text is burnt in, and not all frames can be decoded to paint it over. Leave the file "
            "out."
        )
    painted = mask(pixels, boxes)
    meta = dataset.file_meta
    if dataset[_PIXEL_DATA].is_undefined_length:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
    little = meta.get("TransferSyntaxUID", ImplicitVRLittleEndian).is_little_endian
    if painted.ndim == 4:
        dataset.PhotometricInterpretation = "RGB"
        dataset.PlanarConfiguration = 0
    if dataset.BitsAllocated == 1:
        content = np.packbits(painted.ravel().astype(bool), bitorder="little").tobytes()
    else:
        content = painted.astype(painted.dtype.newbyteorder("<" if little else ">")).tobytes()
        dataset.BitsAllocated = painted.dtype.itemsize * 8
    element = dataset[_PIXEL_DATA]
    element.value = content + b"\0" * (len(content) % 2)
    element.VR = "OB" if dataset.BitsAllocated <= 8 and element.VR == "OB" else "OW"
    if painted.dtype.itemsize == 1 and not little:
        element.VR = "OB"
    element.is_undefined_length = False


def _blank_comments(dataset: Dataset, report: Report) -> None:
    element = dataset[_PIXEL_DATA]
    if not element.is_undefined_length:
        return
    blanked = blanked_fragments(element.value)
    if blanked != element.value:
        element.value = blanked
        report.counts["pixel_comments_blanked"] += 1
