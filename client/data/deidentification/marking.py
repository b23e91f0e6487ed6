"""What a de-identified object says of itself: file meta information, method, character set."""

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, ImplicitVRLittleEndian

from medfed.client.data.deidentification.profile import (
    BASIC_PROFILE,
    CODES,
    Option,
    edition,
)
from medfed.client.data.deidentification.rules import Rules

_UTF8 = "ISO_IR 192"
_TEXT_WITH_CHARSET = frozenset({"SH", "LO", "ST", "LT", "UC", "UT", "PN"})


def rebuilt_file_meta(meta: Dataset, dataset: Dataset) -> FileMetaDataset:
    """Return new file meta information: classes and syntax stay, who sent the file does not."""
    rebuilt = FileMetaDataset()
    rebuilt.FileMetaInformationVersion = b"\0\1"
    rebuilt.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or meta.get(
        "MediaStorageSOPClassUID", ""
    )
    rebuilt.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or ""
    rebuilt.TransferSyntaxUID = meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian
    rebuilt.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    rebuilt.ImplementationVersionName = f"PYDICOM {pydicom.__version__}"[:16]
    return rebuilt


def mark(dataset: Dataset, rules: Rules) -> None:
    """Set what PS3.15 E.1.1 asks for: that, how, and what became of the dates."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [
        f"medfed, DICOM PS3.15 {edition()} Annex E",
        *(CODES[option][1][:64] for option in _options(rules)),
    ]
    # Not Clean Pixel Data, 113101: what paints text over does not find all of it (ADR 17).
    codes = [BASIC_PROFILE, *(CODES[option] for option in _options(rules))]
    dataset.DeidentificationMethodCodeSequence = [_code(*code) for code in codes]
    if Option.RETAIN_LONGITUDINAL_FULL in rules.chosen:
        dataset.LongitudinalTemporalInformationModified = "UNMODIFIED"
    elif Option.RETAIN_LONGITUDINAL_MODIFIED in rules.chosen:
        dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    else:
        dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _options(rules: Rules) -> list[Option]:
    return sorted(set(rules.options), key=lambda option: CODES[option][0])


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item


def set_charset(dataset: Dataset) -> None:
    """Declare what the text that is left needs: nothing for ASCII, else UTF-8, for items too.

    All text has been decoded by then, so that it can be written in any character set.
    """
    if _remove_charset(dataset):
        dataset.SpecificCharacterSet = _UTF8


def _remove_charset(dataset: Dataset) -> bool:
    """Remove the declared character sets; return whether any text is beyond ASCII."""
    needed = False
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                needed |= _remove_charset(item)
        elif element.VR in _TEXT_WITH_CHARSET:
            needed |= not str(element.value).isascii()
    dataset.pop(0x00080005, None)
    return needed
