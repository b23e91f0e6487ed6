"""`[views]` of dataset.toml: which view of an examination an image is, told by header or name."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator
from pydicom.dataset import Dataset

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import text_of
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.labels.headers import open_header
from medfed.common.study.base import Section

_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageLaterality",
    "Laterality",
    "ViewPosition",
    "ViewCodeSequence",
    "SeriesDescription",
)

# DICOM PS3.16 CID 4014 and CID 4010: the views that ViewPosition abbreviates, for files that have
# ViewCodeSequence alone, in SNOMED CT and in the older SNOMED RT.
ABBREVIATIONS = {
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
    "399260004": "ML",
    "R-10224": "ML",
    "399352003": "LM",
    "R-10228": "LM",
    "399099002": "LMO",
    "R-10230": "LMO",
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "R-40888": "PA",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
}


class ViewRule(Section):
    """One of `[views]`: what an image of this view says of itself. All that is given must hold."""

    laterality: tuple[str, ...] = ()
    """ImageLaterality, or else Laterality: L or R."""
    view_position: tuple[str, ...] = ()
    """ViewPosition, or else the abbreviation of ViewCodeSequence: CC, MLO, PA, AP, LL, RL."""
    series_description: tuple[str, ...] = ()
    """Patterns of SeriesDescription, e.g. "*lateral*"."""
    file: tuple[str, ...] = ()
    """Patterns of the path below the archive's folder, e.g. "*_left.png", "*/lateral/*"."""

    @field_validator("*", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.file or self.needs_header):
            raise ValueError(
                "expected what tells this view from others, got nothing. Name laterality, "
                "view_position, series_description or file."
            )
        return self

    @property
    def needs_header(self) -> bool:
        """Whether a DICOM header has to be read for it."""
        return bool(self.laterality or self.view_position or self.series_description)

    def fits(self, facts: "ViewFacts") -> bool:
        """Return whether an image is of this view. Upper and lower case are the same."""
        return (
            _among(facts.laterality, self.laterality)
            and _among(facts.view_position, self.view_position)
            and _like(facts.series_description, self.series_description)
            and _like(facts.file, self.file)
        )


@dataclass(frozen=True)
class ViewFacts:
    """What an image says of its view; empty what it does not say."""

    file: str
    laterality: str = ""
    view_position: str = ""
    series_description: str = ""

    def described(self, rules: Mapping[str, ViewRule]) -> str:
        """Return what the rules ask about and what it says, for a message."""
        asked = [name for name in ("laterality", "view_position", "series_description")
                 if any(getattr(rule, name) for rule in rules.values())]  # fmt: skip
        said = [f"{name} is {getattr(self, name) or 'not given'}" for name in asked]
        return ", ".join(said) or "its name fits none"


def view_of(facts: ViewFacts, rules: Mapping[str, ViewRule]) -> str:
    """Return the one view that an image is of.

    Raises:
        FileProblem: None of the rules fits, or several do.
    """
    fitting = [name for name, rule in rules.items() if rule.fits(facts)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FileProblem(
            f"Expected an image of one view, got one that fits {' and '.join(fitting)}. Say more "
            "of these in [views]."
        )
    raise FileProblem(
        f"Expected one of the views {', '.join(rules)}, got another: {facts.described(rules)}. "
        "Mend [views], or leave the file out with archive.exclude."
    )


def view_facts(path: Path, below: str, limits: ReadLimits, *, header: bool) -> ViewFacts:
    """Return what an image says of its view.

    Args:
        path: The file.
        below: Its path below the archive's folder.
        limits: What it is held to.
        header: Whether it is DICOM, and its header is asked for.

    Raises:
        FileProblem: It cannot be read.
    """
    if not header:
        return ViewFacts(below)
    opened = open_header(path, _KEYWORDS, limits)
    with parsing():
        dataset = opened.dataset
        return ViewFacts(
            below,
            laterality=text_of(dataset, "ImageLaterality") or text_of(dataset, "Laterality"),
            view_position=text_of(dataset, "ViewPosition") or _from_code(dataset),
            series_description=text_of(dataset, "SeriesDescription"),
        )


def _from_code(dataset: Dataset) -> str:
    codes = dataset.get("ViewCodeSequence")
    return ABBREVIATIONS.get(text_of(codes[0], "CodeValue"), "") if codes else ""


def _among(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or value.casefold() in {one.casefold() for one in wanted}


def _like(value: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch(value.casefold(), one.casefold()) for one in patterns)
