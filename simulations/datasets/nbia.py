"""metadata.csv of the NBIA Data Retriever, with which The Cancer Imaging Archive is downloaded.

It says of each series whose it is, what machine made it, and in which folder it lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medfed.simulations.datasets.tables import line_of_key, read_table

_NAME = "metadata.csv"
_SERIES = "Series UID"
_COLUMNS = ("Subject ID", "Manufacturer", "File Location")


@dataclass(frozen=True, kw_only=True)
class NbiaSeries:
    """One row.

    Attributes:
        subject: The collection's name of the patient.
        manufacturer: Of the scanner, as written.
        folder: Below the folder of metadata.csv.
    """

    subject: str
    manufacturer: str
    folder: PurePosixPath


def read_nbia_metadata(folder: Path, *, how_to_get: str) -> tuple[Mapping[str, NbiaSeries], bytes]:
    """Return the series by UID and the file's content, nothing where there is no metadata.csv.

    Raises:
        DataError: Not such a table, or a series twice.
    """
    path = folder / _NAME
    if not path.is_file():
        return {}, b""
    table = read_table(path, columns=(_SERIES, *_COLUMNS), keys=(_SERIES,), how_to_get=how_to_get)
    return {
        uid: NbiaSeries(
            subject=table.rows[line]["Subject ID"].strip(),
            manufacturer=table.rows[line]["Manufacturer"].strip(),
            # Written on Windows it has the other slashes.
            folder=PurePosixPath(table.rows[line]["File Location"].strip().replace("\\", "/")),
        )
        for uid, line in line_of_key(table, _SERIES).items()
    }, table.content
