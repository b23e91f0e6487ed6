"""The institutions of FeTS 2022's cases, from its two partition files.

partitioning_1.csv      Partition_ID, Subject_ID: by the institution that collected the case
partitioning_2.csv      the same, the five largest institutions cut in three by tumor size
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.simulations.datasets.tables import line_of_key, read_table

logger = logging.getLogger(__name__)

FILES = ("partitioning_1.csv", "partitioning_2.csv")

_SUBJECT, _INSTITUTION = "Subject_ID", "Partition_ID"


@dataclass(frozen=True, kw_only=True)
class Institutions:
    """What the partition files say, as far as they are there.

    Attributes:
        by_column: The institution by patient, by column name: partition_1, partition_2.
        contents: SHA-256 of the files, for a digest.
    """

    by_column: Mapping[str, Mapping[str, str]]
    contents: tuple[str, ...]

    def columns(self, patient: str) -> dict[str, str]:
        """Return the metadata columns of a patient's records, empty where it is in no file."""
        return {column: of.get(patient, "") for column, of in self.by_column.items()}


def read_institutions(
    folders: Iterable[Path], patient_of: Callable[[str], str], *, how_to_get: str
) -> Institutions:
    """Read the partition files that lie in the first of `folders` to have them.

    Args:
        folders: Where to look.
        patient_of: The patient by subject, e.g. FeTS2022_00000.
        how_to_get: The publisher's page, for the error.

    Raises:
        DataError: A file that cannot be read as such, or that names a subject twice.
    """
    places = tuple(folders)
    by_column, contents = {}, []
    for number, name in enumerate(FILES, start=1):
        path = next((at / name for at in places if (at / name).is_file()), None)
        if path is None:
            continue
        columns = (_INSTITUTION, _SUBJECT)
        table = read_table(path, columns=columns, keys=columns, how_to_get=how_to_get)
        by_column[f"partition_{number}"] = {
            patient_of(subject): table.rows[line][_INSTITUTION]
            for subject, line in line_of_key(table, _SUBJECT).items()
        }
        contents.append(hashlib.sha256(table.content).hexdigest())
    return Institutions(by_column=by_column, contents=tuple(contents))


def warn_of_missing(institutions: Institutions, patients: Iterable[str]) -> None:
    """Log how many of `patients` have no institution, or that there are none at all."""
    known = tuple(patients)
    if not institutions.by_column:
        logger.warning(
            "There is no %s beside the cases: there are no institutions to partition by.",
            " or ".join(FILES),
        )
    for column, of in institutions.by_column.items():
        if without := sum(patient not in of for patient in known):
            logger.warning("%d case(s) have no institution in %s.", without, column)
