"""What a derived DICOM object (segmentation, structure set, report) was made on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from medfed.client.data.dicom.elements import text_of
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.said import Place

KEYWORDS = (
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID"),
    *("IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "SourceImageSequence"),
    *("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"),
    "StudiesContainingOtherReferencedInstancesSequence",
)
# Sequences in which references lie; of a structure set they are nested four deep.
_NESTED = (
    *("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"),
    *("RTReferencedStudySequence", "RTReferencedSeriesSequence", "ContourImageSequence"),
    *("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"),
    *("ReferencedInstanceSequence", "ReferencedSOPSequence", "SourceImageSequence"),
    *("StudiesContainingOtherReferencedInstancesSequence", "ReferencedImageSequence"),
)
_MAX_DEPTH = 8


@dataclass(frozen=True)
class References:
    """Identities, raw: in memory only.

    Attributes:
        uid: The object's own.
        study: Its study.
        series: UIDs of series that it names.
        instances: UIDs of images that it names.
        frame_of_reference: Where its coordinates are; empty if it does not say.
    """

    uid: str
    study: str
    series: tuple[str, ...]
    instances: tuple[str, ...]
    frame_of_reference: str


def references_of(dataset: Dataset) -> References:
    """Return what `dataset`, parsed for `KEYWORDS`, was made on."""
    series: dict[str, None] = {}
    instances: dict[str, None] = {}
    frame_of_reference = text_of(dataset, "FrameOfReferenceUID")
    for item in _items(dataset, 0):
        # Of a series: the object's own stands at the top only.
        series[text_of(item, "SeriesInstanceUID")] = None
        instances[text_of(item, "ReferencedSOPInstanceUID")] = None
        frame_of_reference = frame_of_reference or text_of(item, "FrameOfReferenceUID")
    return References(
        uid=text_of(dataset, "SOPInstanceUID"),
        study=text_of(dataset, "StudyInstanceUID"),
        series=tuple(uid for uid in series if uid),
        instances=tuple(uid for uid in instances if uid),
        frame_of_reference=frame_of_reference,
    )


def _items(dataset: Dataset, depth: int) -> Iterator[Dataset]:
    for keyword in _NESTED if depth < _MAX_DEPTH else ():
        for item in dataset.get(keyword) or ():
            yield item
            yield from _items(item, depth + 1)


def referenced_series(references: References, index: ArchiveIndex) -> Sequence[int]:
    """Return the series of the archive that an object names; else those of its images' or study."""
    found = [one for uid in references.series for one in index.of_uid("series", uid)]
    if not found and references.instances and not references.series:
        places: list[Place] = [
            place for uid in references.instances for place in index.of_instance(uid)
        ]
        found = [number for number, _ in places]
    if not found and not references.series and not references.instances:
        found = index.of_uid("study", references.study)
    return list(dict.fromkeys(found))
