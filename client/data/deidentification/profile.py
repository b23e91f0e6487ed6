"""Tables E.1-1 and E.3.10-1 of DICOM PS3.15 and the codes of PS3.16 CID 7050.

The rows are in `profile.toml` and `safe_private.toml`; a line there is a line of the standard.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")


class Option(StrEnum):
    """The options of PS3.15 E.3."""

    RETAIN_SAFE_PRIVATE = "retain_safe_private"
    RETAIN_UIDS = "retain_uids"
    RETAIN_DEVICE_IDENTITY = "retain_device_identity"
    RETAIN_INSTITUTION_IDENTITY = "retain_institution_identity"
    RETAIN_PATIENT_CHARACTERISTICS = "retain_patient_characteristics"
    RETAIN_LONGITUDINAL_FULL = "retain_longitudinal_full"
    RETAIN_LONGITUDINAL_MODIFIED = "retain_longitudinal_modified"
    CLEAN_DESCRIPTORS = "clean_descriptors"
    CLEAN_STRUCTURED_CONTENT = "clean_structured_content"
    CLEAN_GRAPHICS = "clean_graphics"
    CLEAN_PIXEL_DATA = "clean_pixel_data"
    CLEAN_VISUAL_FEATURES = "clean_visual_features"


# PS3.16 CID 7050, De-identification Method.
CODES: Mapping[Option, tuple[str, str]] = {
    Option.CLEAN_PIXEL_DATA: ("113101", "Clean Pixel Data Option"),
    Option.CLEAN_VISUAL_FEATURES: ("113102", "Clean Recognizable Visual Features Option"),
    Option.CLEAN_GRAPHICS: ("113103", "Clean Graphics Option"),
    Option.CLEAN_STRUCTURED_CONTENT: ("113104", "Clean Structured Content Option"),
    Option.CLEAN_DESCRIPTORS: ("113105", "Clean Descriptors Option"),
    Option.RETAIN_LONGITUDINAL_FULL: (
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
    ),
    Option.RETAIN_LONGITUDINAL_MODIFIED: (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_DEVICE_IDENTITY: ("113109", "Retain Device Identity Option"),
    Option.RETAIN_UIDS: ("113110", "Retain UIDs Option"),
    Option.RETAIN_SAFE_PRIVATE: ("113111", "Retain Safe Private Option"),
    Option.RETAIN_INSTITUTION_IDENTITY: ("113112", "Retain Institution Identity Option"),
}


@dataclass(frozen=True)
class Attribute:
    """One row of Table E.1-1.

    Attributes:
        tag: As printed, e.g. `0008,0050`, `60xx,3000`, `gggg,eeee`.
        name: Attribute's name.
        vr: Value representation in PS3.6; empty where the row stands for several.
        basic: Action of the Basic Profile, e.g. `X/Z/D`.
        options: Action by option, where an option has one.
    """

    tag: str
    name: str
    vr: str
    basic: str
    options: Mapping[Option, str]

    def action(self, chosen: frozenset[Option]) -> str:
        """Action under the chosen options. Of two options, C goes before K: it gives less away."""
        asked = {self.options[option] for option in chosen if option in self.options}
        return min(asked, default=self.basic)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "profile.toml").read_text(encoding="utf-8"))


@cache
def edition() -> str:
    """Edition of PS3.15 that Table E.1-1 was taken from, e.g. `2026c`."""
    return str(_table()["edition"])


@cache
def attributes() -> Mapping[str, Attribute]:
    """Every row of Table E.1-1 by its tag as printed."""
    rows = {}
    for tag, row in _table()["attributes"].items():
        options = {Option(key): action for key, action in row.items() if key in set(Option)}
        rows[tag] = Attribute(tag, row["name"], row["vr"], row["basic"], options)
    return rows


def attribute_of(tag: int) -> Attribute | None:
    """Return the row that speaks of `tag`, through the wildcards too; None if none does."""
    group, element = tag >> 16, tag & 0xFFFF
    rows = attributes()
    if group % 2:
        return rows["gggg,eeee"]
    if group >> 8 == 0x50:
        return rows["50xx,xxxx"]
    if group >> 8 == 0x60:
        return rows.get(f"60xx,{element:04X}")
    return rows.get(f"{group:04X},{element:04X}")


@cache
def safe_private() -> Mapping[tuple[str, int, int], str]:
    """VR of each safe private attribute by (private creator, group, last byte of element)."""
    table = tomllib.loads((Path(__file__).parent / "safe_private.toml").read_text(encoding="utf-8"))
    return {
        (creator, int(tag[:4], 16), int(tag[-2:], 16)): vr
        for creator, rows in table.items()
        for tag, vr in rows.items()
    }
