"""What a PACS says it holds. Patients' identities are held in memory only, never written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medfed.client.data.archive.inventory import printable
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import tag_of, text_of
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.pacs.problems import PacsError

# PS3.5 9.1, but for leading zeros, which real files have. Digits and dots alone: such a name is
# fit for a path and for a query, where * and \ would mean more.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_MAX_UID = 64
_COUNT = re.compile(r"[0-9]{1,9}")

# No study, and no question that makes sense, has more; a PACS that goes on for ever is stopped.
MAX_ANSWERS = 200_000
STUDY_KEYS = ("StudyInstanceUID", "PatientID", "StudyDate", "StudyDescription",
              "ModalitiesInStudy")  # fmt: skip
SERIES_KEYS = ("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances")
INSTANCE_KEYS = ("SOPInstanceUID", "SOPClassUID")


def is_uid(text: str) -> bool:
    """Return whether `text` is a UID: digits and dots, 64 at most."""
    return len(text) <= _MAX_UID and _UID.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """One series, as the PACS lists it.

    Attributes:
        study: UID of its study, as the PACS wrote it: test it before use.
        uid: Its own, likewise.
        modality: DICOM's code, or empty.
        num_instances: How many instances the PACS announced; None if it does not say.
    """

    study: str
    uid: str
    modality: str
    num_instances: int | None


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """One study, as the PACS lists it.

    Attributes:
        uid: As the PACS wrote it: test it before use.
        date: YYYYMMDD, or empty.
        description: For the hospital's own screen.
        modalities: As far as the PACS says.
        patient: Raw id. Keep it in memory only.
        series: Those that are wanted.
    """

    uid: str
    date: str
    description: str
    modalities: tuple[str, ...]
    patient: str = field(repr=False)
    series: tuple[SeriesFacts, ...] = ()

    def with_series(self, series: tuple[SeriesFacts, ...]) -> "StudyFacts":
        """Return the same study with its series."""
        return replace(self, series=series)


@dataclass(frozen=True)
class Filters:
    """What is asked of the PACS at once; empty: anything.

    Attributes:
        patient: One patient's id.
        dates: As DICOM writes a range: 20190101-20241231, or with one side left out.
        description: With wildcards.
        modality: One.
    """

    patient: str = field(default="", repr=False)
    dates: str = ""
    description: str = ""
    modality: str = ""

    def as_keys(self) -> dict[str, str]:
        """Return DICOM keywords and values."""
        keys = {
            "PatientID": self.patient,
            "StudyDate": self.dates,
            "StudyDescription": self.description,
            "ModalitiesInStudy": self.modality,
        }
        return {key: value for key, value in keys.items() if value}


def study_of(answer: Dataset) -> StudyFacts:
    """Return what an answer to a query of studies says.

    Raises:
        PacsError: It cannot be read, as `series_of` and `words_of`.
    """
    uid, patient, day, description, modalities = words_of(answer, STUDY_KEYS)
    return StudyFacts(
        uid=uid,
        date=printable(day),
        description=printable(description),
        modalities=tuple(filter(None, modalities.split("\\"))),
        patient=patient,
    )


def series_of(answer: Dataset, study: str) -> SeriesFacts:
    """Return what an answer to a query of series says."""
    uid, modality, number = words_of(answer, SERIES_KEYS)
    return SeriesFacts(
        study=study,
        uid=uid,
        modality=printable(modality),
        num_instances=int(number) if _COUNT.fullmatch(number) else None,
    )


def instance_of(answer: Dataset) -> tuple[str, str]:
    """Return the UID and the SOP class that an answer to a query of instances names."""
    uid, kind = words_of(answer, INSTANCE_KEYS)
    return uid, kind


def words_of(answer: Dataset, keywords: tuple[str, ...]) -> tuple[str, ...]:
    """Return what an answer says of each keyword; nothing where it says nothing."""
    try:
        with parsing():
            return tuple(text_of(answer, keyword) for keyword in keywords)
    except FileProblem:
        raise PacsError(
            "Expected a sound answer to a query, the PACS sent a damaged one. Look at its log, or "
            "query another way (pacs.retrieve)."
        ) from None


def from_json(table: Mapping[str, Any], keywords: tuple[str, ...]) -> Dataset:
    """Return those elements of a DICOM JSON answer (PS3.18 F) that were asked for, as text.

    By hand: pydicom's reader raises whatever it stumbles over in an answer that is none.
    """
    answer = Dataset()
    for keyword in keywords:
        tag = tag_of(keyword)
        element = table.get(f"{int(tag):08X}")
        values = element.get("Value") if isinstance(element, dict) else None
        if isinstance(values, list):
            words = [str(one) for one in values if isinstance(one, str | int | float)]
            answer[tag] = DataElement(tag, "UT", "\\".join(words))
    return answer
