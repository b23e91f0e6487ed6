"""`dataset.toml`: what of a hospital's archive is one data set. It never leaves the hospital."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.view_rules import ViewRule
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.dicom.presets import Window
from medfed.client.data.labels.section import LabelSection
from medfed.client.data.pacs.settings import PacsSection
from medfed.common.errors import DataError
from medfed.common.study.base import Section
from medfed.common.toml_files import read_toml


class ArchiveSection(Section):
    """`[archive]`: which files, and how they become images."""

    folders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Where the images lie, relative to dataset.toml. They are only read; no link is followed."""
    exclude: tuple[str, ...] = ()
    """Files to leave out, as patterns of paths below the folder, e.g. "*_mask.png", "old/*"."""
    modalities: tuple[str, ...] = ()
    """Modalities to take, as `medfed data scan` prints them: CR, CT, NIfTI, PNG; empty: all."""
    window: Window = "auto"
    """How values become grey: auto (what the image asks for, or what is usual for its modality),
    percentiles (each image's own values, for files whose windows do not fit them, as MR cut out of
    larger images), lung, soft_tissue, bone, brain, or [centre, width]."""
    slices: Literal["each", "middle"] = "each"
    """In a 2-D study, which images of a series of several: each, or the middle one."""
    patient: Literal["header", "folder", "name"] = "header"
    """Whose an image is: as its DICOM header says; the first folder below the archive's; or what
    patient_pattern finds in its name. What is no DICOM has no header."""
    patient_pattern: str = ""
    r"""With patient = "name": a regular expression with one group, which is the patient, searched
    for in the path below the archive's folder, e.g. '(?:^|/)(\d+)_'."""

    examination: Literal["header", "folder", "name", "column"] = "header"
    """With [views], which images are one examination: those of a DICOM study; of the folder that
    holds them; with what examination_pattern finds in their names; or in a label table's column."""
    examination_pattern: str = ""
    r"""With examination = "name": a regular expression with one group, which is the examination,
    searched for in the path below the archive's folder, e.g. '([^/]+)_(?:left|right)'."""
    examination_column: str = ""
    """With examination = "column": one of the columns of [[labels.tables]]. It is not stored."""

    @field_validator("window", mode="before")
    @classmethod
    def _pair(cls, window: object) -> object:
        return tuple(window) if isinstance(window, list) else window

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _pattern_has_one_group("patient", self.patient, self.patient_pattern)
        _pattern_has_one_group("examination", self.examination, self.examination_pattern)
        if (self.examination == "column") != bool(self.examination_column):
            raise ValueError(
                'Expected examination_column with examination = "column", and only there. Add it, '
                "or leave it out."
            )
        return self


def _pattern_has_one_group(what: str, source: str, pattern: str) -> None:
    if (source == "name") != bool(pattern):
        raise ValueError(
            f'Expected {what}_pattern with {what} = "name", and only there. Add it, or leave it '
            "out."
        )
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{what}_pattern is no regular expression: {error}.") from None
    if pattern and groups != 1:
        raise ValueError(
            f"Expected one group in {what}_pattern, got {groups}. Write (?: ) for the others."
        )


class DatasetFile(Section):
    """All of `dataset.toml`."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What the data set is called here."""
    licence: str = "This site's own: not to be passed on."
    """One line."""
    pseudonym_key: str = ""
    """The site's pseudonym key, relative to dataset.toml, e.g. ../site/keys/pseudonym.key; empty:
    keys/pseudonym.key. Data sets of one site name one key."""
    structures: tuple[str, ...] = ()
    """What masks delineate, in order, for commands that are not told a study; empty: what the masks
    name."""
    archive: ArchiveSection
    limits: ReadLimits = ReadLimits()
    deidentify: Rules = Rules()
    labels: LabelSection = LabelSection()
    views: dict[str, ViewRule] = Field(default_factory=dict)
    """How a view of an examination is told from others, by the name that a study's data.views has
    for it."""
    pacs: PacsSection | None = None
    """Where `medfed data pacs` fetches the files from."""
    folder: Path = Field(default=Path(), exclude=True)
    """Where dataset.toml lies (set on loading)."""

    @model_validator(mode="after")
    def _views_are_told_apart(self) -> Self:
        if len(self.views) == 1:
            raise ValueError("expected two or more of [views], or none for single images.")
        column = self.archive.examination_column
        if column and not any(column in table.columns for table in self.labels.tables):
            raise ValueError(
                f'expected archive.examination_column = "{column}" among the columns of one of '
                "[[labels.tables]], found it in none. Add it to its columns."
            )
        return self

    def path(self, relative: str) -> Path:
        """Return a path of dataset.toml as an absolute one."""
        return (self.folder / relative).absolute()


def load_dataset_file(path: Path) -> DatasetFile:
    """Read and validate a `dataset.toml`.

    Raises:
        DataError: Missing, not TOML, unknown key or impossible value, with the way out.
    """
    missing = f"Expected a data set file at {path}, found none. docs/data.md shows one."
    return read_toml(path, DatasetFile, DataError, missing, folder=path.absolute().parent)
