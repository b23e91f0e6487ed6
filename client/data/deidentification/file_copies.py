"""One DICOM file to a de-identified copy, in memory.

The copy's name is made of pseudonyms and of its content key: what went in, and how it was treated.
The same source, rules and key give the same name and the same bytes.
"""

import hashlib
import io
import json
import warnings
from dataclasses import dataclass

import pydicom
from pydicom.dataset import FileDataset

from medfed.client.data.deidentification.engine import deidentify
from medfed.client.data.deidentification.header_facts import text_facts
from medfed.client.data.deidentification.identity import patient_identity
from medfed.client.data.deidentification.pixel_data import clean_pixel_data
from medfed.client.data.deidentification.profile import edition
from medfed.client.data.deidentification.report import Report
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.pseudonyms import pseudonym
from medfed.common.errors import UnreadableImageError

# Goes up when the same file, rules and key would give other bytes.
_ENGINE = 1
_DICOMDIR = "1.2.840.10008.1.3.10"
_ENCAPSULATED = 0x00420011


@dataclass(frozen=True)
class Copy:
    """A de-identified copy that is yet to be written.

    Attributes:
        name: Path below the output folder, of pseudonyms only.
        content: The file.
        report: What was done.
    """

    name: str
    content: bytes
    report: Report


def rules_digest(rules: Rules, key: bytes) -> str:
    """Return a keyed digest of how files are treated: rules, tables, engine, key."""
    how = {"rules": rules.model_dump(mode="json"), "edition": edition(), "engine": _ENGINE}
    return pseudonym(key, "rules", json.dumps(how, sort_keys=True))


def read_source(content: bytes) -> FileDataset:
    """Read a DICOM file.

    Raises:
        UnreadableImageError: It is none, or one that cannot be copied without its identities.
    """
    with warnings.catch_warnings():
        # pydicom's remarks quote values of the file.
        warnings.simplefilter("ignore")
        try:
            # Without the preamble only a file that says what it is, is taken for DICOM.
            dataset = pydicom.dcmread(io.BytesIO(content), force=True)
            recognised = content[128:132] == b"DICM" or "SOPClassUID" in dataset
        except Exception:  # truncated and foreign files raise all kinds
            recognised = False
    if not recognised:
        raise UnreadableImageError(
            "Expected a DICOM file, got something else or a damaged one. Leave it out, or export "
            "it again."
        )
    if "DirectoryRecordSequence" in dataset or dataset.get("SOPClassUID") == _DICOMDIR:
        raise UnreadableImageError(
            "This is a DICOMDIR: it lists files by names that the copies do not have. Leave it out."
        )
    if not dataset.get("SOPClassUID"):
        raise UnreadableImageError(
            "The file does not say what kind of object it is (no SOP Class UID), so that no valid "
            "copy can be written. Leave it out, or export it again."
        )
    if not dataset.get("SOPInstanceUID"):
        # A copy has to have one. Equal files get equal ones.
        dataset.SOPInstanceUID = f"2.25.{int(hashlib.sha256(content).hexdigest()[:31], 16)}"
    if _ENCAPSULATED in dataset:
        raise UnreadableImageError(
            "This holds a document (PDF or CDA), whose text cannot be de-identified. Leave it out."
        )
    return dataset


def copy_name(dataset: FileDataset, content: bytes, rules: Rules, key: bytes) -> str:
    """Return the name of the copy of a source: patient/study/series/object-content.dcm."""
    digest = pseudonym(key, "content", hashlib.sha256(content).hexdigest())
    treated = pseudonym(key, "copy", digest + rules_digest(rules, key))
    identity = patient_identity(dataset, issuer=rules.issuer_of_patient_id)
    series = (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID"))
    folders = [pseudonym(key, "patient", identity)]
    folders += [pseudonym(key, kind, str(dataset.get(name) or ""))[:16] for kind, name in series]
    return "/".join([*folders, f"{treated[:24]}.dcm"])


def deidentified_copy(dataset: FileDataset, name: str, rules: Rules, key: bytes) -> Copy:
    """De-identify `dataset` in place and return it as a file.

    Raises:
        UnreadableImageError: Burnt-in text that the rules refuse, pixels that cannot be looked
            at, or values that cannot be written.
    """
    facts = text_facts(dataset)
    _ensure_syntax(dataset)
    report = deidentify(dataset, rules, key)
    clean_pixel_data(dataset, facts, rules, report)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
        except Exception as error:
            raise UnreadableImageError(
                f"The copy cannot be written: a value is not what its type says "
                f"({type(error).__name__}). Mend the file, or leave it out."
            ) from None
    return Copy(name, buffer.getvalue(), report)


def _ensure_syntax(dataset: FileDataset) -> None:
    """Add the transfer syntax that a file without file meta information was read in."""
    if not getattr(dataset, "file_meta", None):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _syntax_as_read(dataset)
    if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        raise UnreadableImageError(
            "Expected a transfer syntax of DICOM PS3.6, got a UID that is none. Export the file "
            "again, or leave it out."
        )


def _syntax_as_read(dataset: FileDataset) -> str:
    implicit, little = dataset.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    return str(pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)
