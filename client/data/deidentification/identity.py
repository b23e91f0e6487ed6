"""Who a data set is about, and the names, UIDs and days that stand for it.

The same patient keeps one pseudonym and one shift in all studies of a site, the same UID one
replacement in every file and reference, as long as the site keeps its key.
"""

import unicodedata
import uuid
from dataclasses import dataclass

from pydicom.dataset import Dataset

from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.pseudonyms import pseudonym

_DICOM_ROOT = "1.2.840.10008."
_VARIANT_BITS = (0b11 << 62, 0b10 << 62)
_VERSION_BITS = (0xF << 76, 0x8 << 76)


def normalised(text: str) -> str:
    """Return an identity as it is compared: NFKC, upper case, runs of whitespace as one space.

    Padding (spaces, NUL) goes; leading zeros and punctuation stay: `007` is not `7`.
    """
    folded = unicodedata.normalize("NFKC", text.replace("\0", " ")).upper()
    return " ".join(folded.split())


def patient_identity(dataset: Dataset, *, issuer: bool = False) -> str:
    """Return the raw identity that the patient's pseudonym is made of. Keep it in memory only.

    The patient id; where there is none, the study (so that its images stay together), else the
    series or the object itself.

    Args:
        dataset: A data set that was not yet de-identified.
        issuer: Whether the issuer of the id is part of the identity.
    """
    patient_id = normalised(str(dataset.get("PatientID") or ""))
    if patient_id:
        name = normalised(str(dataset.get("IssuerOfPatientID") or "")) if issuer else ""
        return f"{name}\x1f{patient_id}" if name else patient_id
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        uid = normalised(str(dataset.get(keyword) or ""))
        if uid:
            return f"{keyword}\x1f{uid}"
    return "nobody"


@dataclass(frozen=True)
class Replacement:
    """Keyed stand-ins for one patient's identity.

    Attributes:
        key: The site's key.
        patient: The patient's pseudonym, 32 hexadecimal digits.
        shift_days: What is added to each date: -1 to -`max_shift_days`.
    """

    key: bytes
    patient: str
    shift_days: int

    def uid(self, uid: str) -> str:
        """Return the UID that stands for `uid` at this site; the standard's own stay."""
        bare = uid.strip(" \0")
        if not bare or bare.startswith(_DICOM_ROOT):
            return bare
        return mapped_uid(self.key, bare)


def replacement_for(dataset: Dataset, rules: Rules, key: bytes) -> Replacement:
    """Return the stand-ins for the patient of `dataset`."""
    identity = patient_identity(dataset, issuer=rules.issuer_of_patient_id)
    days = int(pseudonym(key, "shift", identity), 16) % rules.max_shift_days + 1
    return Replacement(key, pseudonym(key, "patient", identity), -days)


def mapped_uid(key: bytes, uid: str) -> str:
    """Return `2.25.` and a UUID (RFC 9562 version 8) made of 122 bits of the keyed pseudonym.

    Reference: DICOM PS3.5 B.2, UUID Derived UID.
    """
    bits = int(pseudonym(key, "uid", uid), 16)
    for mask, value in (_VARIANT_BITS, _VERSION_BITS):
        bits = bits & ~mask | value
    return f"2.25.{uuid.UUID(int=bits).int}"
