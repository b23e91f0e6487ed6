"""Files that are to be stored in the PACS."""

from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import FileDataset

from medfed.client.data.archive.inventory import printable
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import text_of
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.pacs.facts import is_uid
from medfed.common.errors import DataError, reason

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def readable(path: Path, *, header_only: bool = False) -> FileDataset:
    """Return a file that can be stored: DICOM, with UIDs and a transfer syntax.

    Raises:
        DataError: It is none.
    """
    try:
        with path.open("rb") as file, parsing():
            dataset = dcmread(file, stop_before_pixels=header_only)
            uids = [text_of(dataset, keyword) for keyword in _NEEDED]
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    except FileProblem as problem:
        raise problem.of(path) from None
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {reason(error)}") from None
    if not all(is_uid(uid) for uid in [*uids, syntax]):
        raise DataError(
            f"{printable(path)}: expected a DICOM object with UIDs and a transfer syntax, got one "
            "without. Make it again."
        )
    return dataset
