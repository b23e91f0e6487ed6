"""Which DICOM objects are no pictures: by SOP class (PS3.4 B.5), else modality (PS3.3 C.7.3.1)."""

from pydicom.dataset import Dataset

from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import text_of, uid_of

_NO_ADVICE = "Nothing to do."
# Beginnings or parts of the classes' keywords, and what they are.
_CLASSES = (
    ("MediaStorageDirectory", "DICOMDIR"),
    ("BasicStructuredDisplay", "structured display"),
    ("RTStructureSet", "RTSTRUCT"),
    ("Segmentation", "segmentation"),
    ("RTPlan", "RTPLAN"),
    ("RTIonPlan", "RTPLAN"),
    ("PresentationState", "presentation state"),
    ("KeyObject", "key object selection"),
    ("Waveform", "waveform"),
    ("SRStorage", "structured report"),
    ("TextSR", "structured report"),
    ("ComprehensiveSR", "structured report"),
    ("Comprehensive3DSR", "structured report"),
    ("EnhancedSR", "structured report"),
    ("CADSR", "structured report"),
    ("RadiationDoseSR", "structured report"),
    ("ProcedureLog", "structured report"),
    ("SimplifiedAdultEchoSR", "structured report"),
    ("Encapsulated", "encapsulated document"),
    ("Registration", "registration"),
    ("Fiducials", "fiducials"),
    ("RawData", "raw data"),
    ("RealWorldValueMapping", "value mapping"),
    ("Tractography", "tractography"),
    ("Treatment", "RT treatment record"),
    ("RTBeams", "RT delivery"),
)
_MODALITIES = {
    "SR": "structured report",
    "RTSTRUCT": "RTSTRUCT",
    "RTPLAN": "RTPLAN",
    "RTRECORD": "RT treatment record",
    "PR": "presentation state",
    "KO": "key object selection",
    "SEG": "segmentation",
    "ECG": "waveform",
    "EPS": "waveform",
    "HD": "waveform",
    "AU": "waveform",
    "REG": "registration",
    "FID": "fiducials",
    "DOC": "encapsulated document",
}
_ADVICE = {
    "segmentation": "Give it as a mask with `medfed data label`.",
    "RTSTRUCT": "Give it as a mask with `medfed data label`.",
    "structured report": "Its text can label images: `medfed data label`.",
}


def why_no_image(dataset: Dataset) -> FileProblem | None:
    """Return what a sound object is that is no picture; None if it should be one."""
    keyword = uid_of(_sop_class(dataset)).keyword
    what = next((what for part, what in _CLASSES if part in keyword), "")
    if not what and "DirectoryRecordSequence" in dataset:
        what = "DICOMDIR"
    if not what and not keyword:
        what = _MODALITIES.get(text_of(dataset, "Modality"), "")
    return _not_an_image(what) if what else None


def without_pixels(dataset: Dataset) -> FileProblem:
    """Return the problem of an object that has none."""
    sop_class = _sop_class(dataset)
    if not sop_class:
        return _not_an_image("data set of no stated class")
    return FileProblem(
        f"Expected pixels in a {uid_of(sop_class).name} file, found none: only its header was "
        "exported. Export it again with pixel data.",
        "DICOM header without pixels",
    )


def _not_an_image(what: str) -> FileProblem:
    return FileProblem(
        f"It is a DICOM object without a picture ({what}). {_ADVICE.get(what, _NO_ADVICE)}",
        f"DICOM {what}",
        "not_an_image",
    )


def _sop_class(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return text_of(dataset, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID")
