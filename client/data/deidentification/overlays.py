"""Overlay planes (PS3.3 C.9.2): a second picture on top, where names like to be drawn.

They are removed whole, with the bits that older files keep them in above the stored pixel bits.
Under Clean Graphics a plane stays if no text is found in it, without its labels and comments.
"""

import numpy as np
from pydicom.dataset import Dataset

from medfed.client.data.deidentification.profile import Option
from medfed.client.data.deidentification.report import Report
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.text_detection import find_text

_GEOMETRY = frozenset({0x0010, 0x0011, 0x0015, 0x0040, 0x0050, 0x0051, 0x0100, 0x0102, 0x3000})
_DATA, _POSITION = 0x3000, 0x0102
_PIXEL_DATA = 0x7FE00010


def clean_overlays(dataset: Dataset, rules: Rules, report: Report) -> None:
    """Remove overlay planes from `dataset` in place, or their text alone."""
    groups = sorted({tag.group for tag in list(dataset.keys()) if tag.group >> 8 == 0x60})
    embedded = False
    for group in (group for group in groups if group % 2 == 0):
        keeps = Option.CLEAN_GRAPHICS in rules.chosen and _is_free_of_text(dataset, group)
        if not keeps and (group, _DATA) not in dataset and (group, _POSITION) in dataset:
            embedded = True
        _drop(dataset, group, all_of_it=not keeps)
        report.counts["overlays_kept" if keeps else "overlays_removed"] += 1
    if embedded:
        _clear_unused_bits(dataset, report)


def _drop(dataset: Dataset, group: int, *, all_of_it: bool) -> None:
    for tag in [tag for tag in list(dataset.keys()) if tag.group == group]:
        if all_of_it or tag.element not in _GEOMETRY:
            del dataset[tag]


def _is_free_of_text(dataset: Dataset, group: int) -> bool:
    if (group, _DATA) not in dataset:
        return False
    try:
        plane = np.asarray(dataset.overlay_array(group))
    except Exception:  # a plane that cannot be decoded cannot be looked at
        return False
    frames = plane.reshape(-1, *plane.shape[-2:])
    return not any(find_text((frame * 255).astype(np.uint8)) for frame in frames)


def _clear_unused_bits(dataset: Dataset, report: Report) -> None:
    """Set the bits above the stored ones to zero, or to the sign, in uncompressed pixels."""
    allocated = int(dataset.get("BitsAllocated") or 0)
    stored = int(dataset.get("BitsStored") or 0)
    if _PIXEL_DATA not in dataset or allocated != 16 or not 0 < stored < allocated:
        return
    if dataset[_PIXEL_DATA].is_undefined_length:
        return  # compressed pixels have no such bits
    little = dataset.original_encoding[1] is not False
    element = dataset[_PIXEL_DATA]
    odd = len(element.value) % 2
    body = element.value[: len(element.value) - odd]
    if dataset.get("PixelRepresentation"):
        words = np.frombuffer(body, "<i2" if little else ">i2").astype(np.int32)
        low = words << (32 - stored) >> (32 - stored)
        cleared = low.astype("<i2" if little else ">i2")
    else:
        words = np.frombuffer(body, "<u2" if little else ">u2")
        cleared = (words & (2**stored - 1)).astype("<u2" if little else ">u2")
    element.value = cleared.tobytes() + element.value[len(body) :]
    report.counts["overlay_bits_cleared"] += 1
