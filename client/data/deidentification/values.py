"""What the value of an element becomes, by its VR: a dummy, or a cleaned value.

A description is cleaned by keeping the words that are on the list in `words.toml` and nothing
else: what is known not to identify is kept, not what is known to identify removed.
"""

import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medfed.client.data.deidentification.dates import (
    DUMMY_DATE,
    DUMMY_TIME,
    kept_time,
    shifted_date,
    shifted_datetime,
)

REMOVED = "REMOVED"
DATES = frozenset({"DA", "TM", "DT"})
FREE_TEXT = frozenset({"LT", "ST", "UT", "UC", "UR"})
TEXT = FREE_TEXT | {"LO", "SH", "AE", "CS", "PN"}
_OLDEST_STATED_AGE = 89
_WORD = re.compile(r"[^\W_]+")
_SHORT_NUMBER = re.compile(r"\d{1,3}")
_NUMBERS: dict[str, Any] = (
    dict.fromkeys(("DS", "IS"), "0")
    | dict.fromkeys(("FL", "FD"), 0.0)
    | dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV"), 0)
)


def dummy(vr: str) -> Any:
    """Return a value of this VR that is not empty and says nothing. Not for UI and SQ."""
    if vr in _NUMBERS:
        return _NUMBERS[vr]
    if vr in ("OB", "OD", "OF", "OL", "OV", "OW", "UN"):
        return bytes(8)
    special = {
        "DA": DUMMY_DATE,
        "TM": DUMMY_TIME,
        "DT": DUMMY_DATE + DUMMY_TIME,
        "AS": "000Y",
        "AT": 0,
        "UR": "urn:removed",
    }
    return special.get(vr, REMOVED)


def dummy_item(keyword: str) -> Dataset:
    """Return the one item of a sequence that has to be there, with nothing of the source in it."""
    item = Dataset()
    if keyword == "ContentSequence":
        item.RelationshipType = "CONTAINS"
        item.ValueType = "TEXT"
        item.ConceptNameCodeSequence = [_code("121106", "DCM", "Comment")]
        item.TextValue = REMOVED
    elif keyword.endswith("CodeSequence"):
        return _code(REMOVED, "99MEDFED", REMOVED)
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to a value, or to each of several."""
    if isinstance(value, MultiValue | list | tuple):
        return [change(str(part)) for part in value]
    return change(str(value))


def moved_date(vr: str, value: Any, days: int) -> Any:
    """Return a DA or DT value `days` later and a TM value as it is."""
    if vr == "TM":
        return mapped(value, kept_time)
    change = shifted_date if vr == "DA" else shifted_datetime
    return mapped(value, lambda text: change(text, days))


def stated_age(value: str) -> str:
    """Return an AS value; ages over 89 become 090Y, as HIPAA's safe harbour asks."""
    match = re.fullmatch(r"(\d{1,3})\s*([DWMY])?", value.strip(" \0"))
    if match is None:
        return ""
    per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2] or "Y"]
    if int(match[1]) / per_year >= _OLDEST_STATED_AGE + 1:
        return "090Y"
    return f"{int(match[1]):03d}{match[2] or 'Y'}"


@cache
def _words() -> frozenset[str]:
    table = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
    return frozenset(word for group in table.values() for word in group.split())


def cleaned_text(text: str, unwelcome: frozenset[str] = frozenset()) -> str:
    """Return the words of `text` that describe an examination, in upper case; `REMOVED` if none.

    Numbers of up to three digits stay, since slice thicknesses and echo times are such numbers.

    Args:
        text: A description.
        unwelcome: Words of this patient's own identity, which go even where they are on the list.
    """
    # Without would otherwise become with.
    spelt = re.sub(r"(?i)\bw\s*/\s*o\b", "without", text)
    words = [word.upper() for word in _WORD.findall(spelt)]
    kept = [
        word
        for word in words
        if word not in unwelcome and (word in _words() or _SHORT_NUMBER.fullmatch(word))
    ]
    if not any(word in _words() for word in kept):
        return REMOVED
    return " ".join(kept)
