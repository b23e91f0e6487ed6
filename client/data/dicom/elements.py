"""Reads single values out of a parsed header, from their bytes where that is safe.

pydicom turns an element's bytes into objects when it is first asked for it; for the thirty that a
scan needs of each file that takes as long as reading the file. Text of the ASCII representations
and unsigned shorts are simple enough to be read here; everything else is left to pydicom.
"""

import functools
import struct

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

# PS3.5 6.2: these are of the default repertoire, whatever the character set.
_ASCII = frozenset({"AS", "CS", "DA", "DS", "IS", "TM", "UI"})


@functools.cache
def tag_of(keyword: str) -> BaseTag:
    """Return the tag of an attribute."""
    return Tag(keyword)


def uid_of(text: str) -> UID:
    """Return a UID as it is written, without pydicom's complaint if it is none."""
    return UID(text, config.IGNORE)


def text_of(dataset: Dataset, keyword: str) -> str:
    """Return an attribute as text, its values separated by backslashes; empty if there is none."""
    raw = _raw(dataset, keyword)
    if raw is not None and _vr(keyword) in _ASCII:
        return raw.decode("ascii", "replace").strip(" \0")
    value = dataset.get(keyword)
    if value is None:
        return ""
    # A person's name can be iterated over too, letter by letter.
    several = isinstance(value, MultiValue | list)
    text = "\\".join(str(one) for one in value) if several else str(value)
    return text.strip(" \0")


def numbers_of(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return an attribute's numbers; none if it is absent or says something else."""
    raw = _raw(dataset, keyword)
    try:
        if raw is None:
            value = dataset.get(keyword)
            if value is None or value == "":
                return ()
            several = [value] if isinstance(value, str | int | float) else value
            return tuple(float(one) for one in several)
        if _vr(keyword) == "US":
            return _shorts(dataset, keyword, raw)
        return tuple(float(one) for one in raw.split(b"\\")) if raw.strip(b" \0") else ()
    except (TypeError, ValueError):
        return ()


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """Return an attribute's first number, None if it has none."""
    return next(iter(numbers_of(dataset, keyword)), None)


def _shorts(dataset: Dataset, keyword: str, raw: bytes) -> tuple[float, ...]:
    order = "<" if dataset.get_item(tag_of(keyword)).is_little_endian else ">"
    return struct.unpack(f"{order}{len(raw) // 2}H", raw[: len(raw) // 2 * 2])


def _raw(dataset: Dataset, keyword: str) -> bytes | None:
    """An element's bytes, if it is one that can be read here and that pydicom has not yet."""
    tag = tag_of(keyword)
    if tag not in dataset:
        return None
    element = dataset.get_item(tag)
    simple = isinstance(element, RawDataElement) and isinstance(element.value, bytes)
    if not simple or (_vr(keyword) not in _ASCII and _vr(keyword) != "US"):
        return None
    # A file may state another representation than the dictionary does.
    if element.VR is not None and _vr(keyword) != element.VR:
        return None
    value: bytes = element.value
    return value


@functools.cache
def _vr(keyword: str) -> str:
    return str(dictionary_VR(tag_of(keyword)))
