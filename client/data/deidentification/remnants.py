"""A second net below the table: this patient's own identity wherever else it was written.

The table says which attributes identify. A technician may still have typed a name into a filter
type or a coded meaning. So what the identifying attributes of a data set hold is looked for in
everything that is kept, and a value that holds any of it goes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medfed.client.data.deidentification.identity import normalised

_NAMED = frozenset(
    (
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "OtherPatientIDs",
        "OtherPatientNames",
        "PatientBirthName",
        "PatientMotherBirthName",
        "PatientBirthDate",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "MedicalRecordLocator",
        "AccessionNumber",
        "StudyID",
        "AdmissionID",
        "InsurancePlanIdentification",
        "InstitutionName",
        "InstitutionAddress",
        "InstitutionalDepartmentName",
        "StationName",
        "DeviceSerialNumber",
        "StudyDate",
        "SeriesDate",
        "AcquisitionDate",
        "ContentDate",
        "RequestedProcedureID",
        "ScheduledProcedureStepID",
        "PerformedProcedureStepID",
        "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest",
    )
)
_PLACES = frozenset({"InstitutionName", "InstitutionalDepartmentName", "StationName"})
_SHORTEST = 4
_SHORTEST_NUMBER = 5
_WORD = re.compile(r"[^\W_]+")
# Long enough not to be a software version.
_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){6,}")
_STANDARD_UID = "1.2.840.10008."


@dataclass(frozen=True)
class Remnants:
    """What may not be left anywhere in a de-identified data set.

    Attributes:
        words: Single words of names and whole ids, normalised.
        phrases: Whole values of more than one word.
    """

    words: frozenset[str]
    phrases: tuple[str, ...]

    def found_in(self, text: str) -> bool:
        """Whether `text` holds a word or a phrase of the patient's identity, or a foreign UID."""
        if any(not uid.startswith(_STANDARD_UID) for uid in _UID.findall(text)):
            return True
        folded = normalised(text)
        if any(phrase in folded for phrase in self.phrases):
            return True
        return not self.words.isdisjoint(_WORD.findall(folded))

    def found_in_bytes(self, content: bytes) -> bool:
        """Whether bytes hold it, as ASCII or as Latin 1: for elements whose form is unknown."""
        return self.found_in(content.decode("latin-1"))


def remnants_of(dataset: Dataset) -> Remnants:
    """Collect the identifying values of a data set that was not yet de-identified."""
    words: set[str] = set()
    phrases: set[str] = set()
    for keyword, text in _identifying_values(dataset):
        whole = normalised(re.sub(r"[\^=]", " ", text))
        found = _WORD.findall(whole)
        if len(found) > 1 and len(whole) > _SHORTEST:
            phrases.add(whole)
        # A hospital's name is made of common words: only all of them together tell.
        if keyword not in _PLACES or len(found) == 1:
            words.update(word for word in found if _tells(word))
    return Remnants(frozenset(words), tuple(sorted(phrases)))


def _tells(word: str) -> bool:
    if not word.isascii():
        # A Chinese or Korean name is two or three characters.
        return len(word) > 1
    return len(word) >= (_SHORTEST_NUMBER if word.isdigit() else _SHORTEST)


def _identifying_values(dataset: Dataset) -> Iterable[tuple[str, str]]:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # noqa: S112 - an element that cannot be read is removed later on
            continue
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _identifying_values(item)
        elif element.VR == "PN" or element.keyword in _NAMED:
            for value in several(element.value):
                yield element.keyword, str(value)


def several(value: Any) -> Iterable[Any]:
    """Return the values of an element, of which there may be none, one or many."""
    # A PersonName can be iterated too: over its letters.
    if isinstance(value, MultiValue | list | tuple):
        return value
    return () if value is None else (value,)
