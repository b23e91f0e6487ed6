"""Dates and times as DICOM writes them (PS3.5 table 6.2-1), moved by whole days."""

import re
from datetime import date, timedelta

DUMMY_DATE = "19000101"
DUMMY_TIME = "000000"
# ACR-NEMA wrote 1997.04.24 and 10:22:03.
_DATE = re.compile(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})")
_TIME = re.compile(r"\d{2}:?(\d{2}:?(\d{2}(\.\d{1,6})?)?)?")
_DATETIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2,6}(?:\.\d{1,6})?)?([+-]\d{4})?")


def shifted_date(text: str, days: int) -> str:
    """Return a DA value `days` later; empty if `text` is no date."""
    match = _DATE.fullmatch(text.strip(" \0"))
    return _moved(int(match[1]), int(match[2]), int(match[3]), days) if match else ""


def kept_time(text: str) -> str:
    """Return a TM value as it is, without colons; empty if `text` is no time."""
    bare = text.strip(" \0")
    return bare.replace(":", "") if _TIME.fullmatch(bare) else ""


def shifted_datetime(text: str, days: int) -> str:
    """Return a DT value `days` later, as precise as it was; empty if `text` is none.

    A month or a year without a day moves as its middle does.
    """
    match = _DATETIME.fullmatch(text.strip(" \0"))
    if match is None:
        return ""
    year, month, day, time, zone = match.groups()
    moved = _moved(int(year), int(month or 7), int(day or 15 if month else 1), days)
    if not moved:
        return ""
    precision = 8 if day else 6 if month else 4
    return moved[:precision] + (time or "") + (zone or "")


def _moved(year: int, month: int, day: int, days: int) -> str:
    try:
        moved = date(year, month, day) + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"
