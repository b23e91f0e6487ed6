"""Invented identities for phantom patients, so that their DICOM files have something to leak.

Names are made up of words that are nobody's family name, so a test that finds one in a message
or a log has found a leak.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from medfed.client.data.records import SourceRecord
from medfed.common.errors import DataError
from medfed.common.seeding import numpy_rng
from medfed.simulations.phantom.findings import FIELD_OF_VIEW_MM

_FAMILY_NAMES = (
    "Quillfeather", "Brambleworth", "Osterwick", "Thimblecroft", "Marrowgate", "Pendlefen",
    "Larkspurton", "Vintermoss", "Cobblestane", "Dunwhistle", "Ashglimmer", "Fennimarsh",
    "Hollowbeck", "Jasperholt", "Kettlebrine", "Nettlequay", "Rookhaven", "Saltmeadow",
    "Tumbledale", "Wickerstrand",
)  # fmt: skip
_GIVEN_NAMES: dict[str, tuple[str, ...]] = {
    "F": ("Zephyrine", "Odalinde", "Maravel", "Isolwyn", "Brisella", "Thessaly", "Quenelle"),
    "M": ("Corvander", "Aldomir", "Fennick", "Jorvath", "Peregrant", "Tolliver", "Umberon"),
}


def write_dicom(
    dataset_records: Sequence[SourceRecord], folder: Path, *, seed: int
) -> tuple[Path, ...]:
    """Write one DICOM file for each phantom record, with invented identities; return the paths.

    A patient's name, identifier and dates derive from (seed, patient) alone: not from findings,
    labels or pixels. Files hold no label and no report. A patient's images share one patient
    identifier; each image is a study of its own, some months after the one before.

    Args:
        dataset_records: Records of `load_phantom`; other records lack the columns.
        folder: Created if missing; files are named by record_id.
        seed: Root seed of the identities.

    Raises:
        DataError: If a record is not the phantom's, or its image is not uint8 [H, W].
    """
    # Imported here: pydicom is needed by those who write files, not by every simulation.
    from medfed.client.data.dicom_writer import DicomHeader, write_dicom_image

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for record in dataset_records:
        columns = record.columns
        missing = {"scanner", "sex", "age", "modality", "image_number"} - set(columns)
        if missing:
            raise DataError(
                f"Expected a phantom record, got one without {', '.join(sorted(missing))}. "
                "Pass records of load_phantom."
            )
        name, patient_key, birth_date = _identity(record, seed)
        taken = _study_date(seed, record.patient_id, int(columns["image_number"]))
        header = DicomHeader(
            uid_source=f"{seed}/{record.record_id}",
            patient_name=name,
            patient_id=patient_key,
            birth_date=birth_date,
            sex=columns["sex"],
            study_date=taken,
            modality="CR" if columns["modality"] == "xray" else "CT",
            institution=f"Phantom Hospital {columns['scanner'].rpartition('-')[2]}",
            station=columns["scanner"],
            field_of_view_mm=FIELD_OF_VIEW_MM["xray" if columns["modality"] == "xray" else "ct"],
        )
        path = folder / f"{record.record_id}.dcm"
        write_dicom_image(path, record.read_image(), header)
        paths.append(path)
    return tuple(paths)


def _identity(record: SourceRecord, seed: int) -> tuple[str, str, date]:
    """Return (name as DICOM writes it, hospital's identifier, date of birth)."""
    rng = numpy_rng(seed, "phantom", "identity", record.patient_id)
    family = _FAMILY_NAMES[int(rng.integers(len(_FAMILY_NAMES)))]
    given_names = _GIVEN_NAMES[record.columns["sex"]]
    given = given_names[int(rng.integers(len(given_names)))]
    # The last digits keep two patients from ever sharing an identifier.
    number = f"PHT{int(rng.integers(1000, 10000))}{record.patient_id.lstrip('P')}"
    first = _study_date(seed, record.patient_id, 1)
    days = int(record.columns["age"]) * 365.25 + 1 + float(rng.integers(0, 364))
    return f"{family}^{given}", number, first - timedelta(days=int(days))


def _study_date(seed: int, patient_id: str, image_number: int) -> date:
    rng = numpy_rng(seed, "phantom", "study-date", patient_id)
    taken = date(2020, 1, 1) + timedelta(days=int(rng.integers(0, 1000)))
    gaps = rng.integers(20, 200, size=image_number)
    return taken + timedelta(days=int(gaps[: image_number - 1].sum()))
