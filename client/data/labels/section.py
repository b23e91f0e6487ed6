"""`[labels]` of a data set file: where an archive's labels come from and how they are read."""

import codecs
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from medfed.common.study.base import Section

Key = Literal["patient", "study", "series", "image", "file", "accession"]
Delimiter = Literal["auto", ",", ";", "\t", "|"]
Encoding = str
Value = int | str


class _TextSection(Section):
    """What is read as text."""

    encoding: Encoding = "auto"
    """auto: UTF-8, UTF-16 with a byte order mark, or else Windows-1252; which is reported. Or a
    name that Python knows, e.g. latin-1, cp850, shift_jis."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        if name == "auto":
            return name
        try:
            # hex, zip and the like are codecs too, but of no text.
            b"".decode(name)
            return codecs.lookup(name).name
        except LookupError:
            raise ValueError(
                f'expected "auto" or the name of an encoding, got {name!r}. Examples: utf-8, '
                "latin-1, cp1252, utf-16."
            ) from None


class _RowsSection(_TextSection):
    """Rows of a table that say something of images."""

    file: str
    """CSV or tab-separated text, relative to the data set file."""
    key: Key
    """What a row is about. patient: the patient id; study, series, image: its UID; accession: the
    accession number; file: name or path, with or without extension. De-identified copies are found
    by the hospital's own ids and UIDs, and the other way round, as long as the site keeps its
    pseudonym key."""
    key_column: str = Field(min_length=1)
    """Column that holds it."""
    key_width: int = Field(default=0, ge=0, le=64)
    """Keys of digits are filled with leading zeros to so many: spreadsheets drop them."""
    issuer: str = ""
    """Issuer of the patient ids of the whole table; used where [deidentify] counts it in."""
    delimiter: Delimiter = "auto"
    """auto: the one that makes the columns named here."""


class TableSection(_RowsSection):
    """One of `[[labels.tables]]`."""

    label_column: str = ""
    """Column of the class: one a cell, or several separated by `separator`. An empty cell says
    nothing. What a cell does not name is absent."""
    separator: str = ""
    """Between the classes of a cell, e.g. "|"; empty: a cell is one class."""
    class_columns: tuple[str, ...] = ()
    """One column a class, instead of label_column: 1 (1.0, true, yes, y) present; 0 (0.0, false,
    no, n) absent; empty says nothing; -1 (u) uncertain."""
    uncertain: Literal["absent", "present", "leave_out"] = "absent"
    """What an uncertain class is; leave_out: the image is not used."""
    columns: tuple[str, ...] = ()
    """Columns to keep with the images: sex, age, scanner. They are stored as they are."""
    split_column: str = ""
    """Column of the published split: train, training, val, valid, validation, dev are the train
    side; test, testing the test side; empty says nothing."""
    patient_column: str = ""
    """Column that says whose an image is, for files that do not: pictures and NIfTI."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        said = (self.label_column, self.class_columns, self.columns, self.split_column,
                self.patient_column)  # fmt: skip
        if not any(said):
            raise ValueError(
                "expected what the table says, got a key alone. Name label_column, class_columns, "
                "columns, split_column or patient_column."
            )
        if self.label_column and self.class_columns:
            raise ValueError(
                "expected label_column or class_columns, got both. Make it two tables of one file."
            )
        if self.patient_column and self.key == "patient":
            raise ValueError(
                "expected no patient_column where the key is the patient. Remove one of them."
            )
        return self


class FolderSection(Section):
    """`[labels.folders]`: the class is the name of a folder that the image lies in."""

    level: int = -1
    """-1: the folder that holds the file, -2 the one above; 1: the first below the archive's
    folder, 2 the next."""

    @field_validator("level")
    @classmethod
    def _not_zero(cls, level: int) -> int:
        if level == 0:
            raise ValueError("expected -1, -2, ... (from the file) or 1, 2, ... (from the archive)")
        return level


class MaskSection(Section):
    """One of `[[labels.masks]]`."""

    kind: Literal["auto", "png", "nifti", "seg", "rtstruct"] = "auto"
    """png: pictures, TIFF too. auto: what the files are; without a pattern, DICOM SEG and
    RTSTRUCT."""
    folder: str = ""
    """Where the files are, relative to the data set file; empty: the archive's folders."""
    pattern: str = ""
    """Path below the folder of png and nifti masks: {stem} (of the image's file name), {patient},
    {study} or {series}, and * for anything, e.g. "{stem}_mask*.png". Several files that match one
    image are united. DICOM masks name the images that they belong to."""
    structures: dict[str, Value] = Field(default_factory=dict)
    """What of a mask is which structure of the data set. png, nifti: a value, "any" that is not 0,
    or ">127". seg, rtstruct: the name of the segment or ROI. Unset: one structure that is
    everything not 0; segments and ROIs by their own names."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        by_name = self.kind in ("png", "nifti")
        if by_name and "{" not in self.pattern:
            raise ValueError(
                f'pattern: expected one with {{stem}}, got {self.pattern!r}, e.g. "{{stem}}.png"'
            )
        if self.kind in ("seg", "rtstruct") and self.pattern:
            raise ValueError("pattern: DICOM masks name their images themselves. Remove it.")
        return self


class ReportSection(_TextSection):
    """One of `[[labels.reports]]`: text files, a column of a table, or DICOM structured reports.

    Texts are taken as they are, names and all: they stay at the site.
    """

    folder: str = ""
    """Where text files are, relative to the data set file; empty: the archive's folders."""
    pattern: str = ""
    """Their path below the folder, with {stem}, {patient}, {study} or {series}."""
    table: "ReportTable | None" = None
    """Instead: a table that holds the texts."""
    structured_reports: bool = False
    """Instead: the text of the DICOM structured reports in the archive."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum([bool(self.pattern), self.table is not None, self.structured_reports]) != 1:
            raise ValueError("expected one of pattern, table and structured_reports. Name one.")
        if self.pattern and "{" not in self.pattern:
            raise ValueError('pattern: expected one with {stem}, e.g. "{stem}.txt"')
        return self


class ReportTable(_RowsSection):
    """`table` of `[[labels.reports]]`."""

    text_columns: tuple[str, ...] = Field(min_length=1)
    """Columns of the text, in the order in which they are put together."""


class LabelSection(Section):
    """`[labels]`: what is known of the images, and from where."""

    tables: tuple[TableSection, ...] = ()
    """`[[labels.tables]]`."""
    folders: FolderSection | None = None
    """`[labels.folders]`; unset: folders say nothing."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Class by what a source calls it; "" drops it."""
    masks: tuple[MaskSection, ...] = ()
    """`[[labels.masks]]`."""
    reports: tuple[ReportSection, ...] = ()
    """`[[labels.reports]]`."""
    conflicts: Literal["refuse", "leave_out", "any"] = "refuse"
    """Where two sources say different things of one image. leave_out: it is not used. any: all
    classes, masks and texts that a source gives; the first source's column and patient stand; an
    image on both sides of the split is left out."""
    overlap: Literal["refuse", "later", "regions"] = "refuse"
    """Where two structures claim a pixel. later: the later structure covers the earlier (a tumour
    in its organ). regions: both hold, one bit each, for studies of mode multilabel."""


ReportSection.model_rebuild()
