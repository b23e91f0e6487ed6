"""The tuberculosis radiographs of the National Library of Medicine: what both its sets share.

    CXR_png/MCUCXR_0001_0.png               the last digit: 0 normal, 1 tuberculosis
    ClinicalReadings/MCUCXR_0001_0.txt      sex, age and a radiologist's reading

Jaeger et al. 2014, https://doi.org/10.3978/j.issn.2223-4292.2014.11.20
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.patients import join_patients
from medfed.simulations.datasets.pictures import list_pictures, read_picture, refuse

logger = logging.getLogger(__name__)

CLASSES = ("normal", "tuberculosis")
LICENCE = "Free use; cite the paper and acknowledge the National Library of Medicine"
CITATION = (
    "Jaeger S, Candemir S, Antani S, Wang YXJ, Lu PX, Thoma G. Two public chest X-ray datasets for "
    "computer-aided screening of pulmonary diseases. Quant Imaging Med Surg 4:475 (2014)."
)

_IMAGES = "CXR_png"
_READINGS = "ClinicalReadings"
_ANY_NAME = re.compile(r"(?:MCUCXR|CHNCXR)_\d{4}_[01]")

# "Patient's Sex: F", "male 45yrs", "Female, 28yrs", "femal 32yrs", "female24yrs"
_SEX = re.compile(r"(?:sex:\s*)?(?P<sex>female?|male|[fmo]\b)", re.IGNORECASE)
# "Patient's Age: 027Y", "45yrs", "16month", "64days"
_AGE = re.compile(r"(?P<number>\d{1,3})\s*(?P<unit>y|m|d|$)", re.IGNORECASE)
_UNITS_A_YEAR = {"y": 1, "": 1, "m": 12, "d": 365}
_ABOUT_THE_PATIENT = re.compile(r"patient's (sex|age)\s*:|\s*(fe)?male?\b|\s*(fe)?male?\s*,?\s*\d")

Masks = Callable[[], npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """One of the two sets.

    Attributes:
        name: The data set's published name.
        dataset: Value of the column `dataset`.
        prefix: What its file names start with.
        folder: The folder that its archive unpacks to.
        how_to_get: The publisher's page and what to place where.
    """

    name: str
    dataset: str
    prefix: str
    folder: str
    how_to_get: str

    def find(self, folder: Path) -> Path:
        """Return the folder that holds CXR_png/, which is `folder` or one below.

        Raises:
            DataError: None.
        """
        return find_root(
            folder,
            (self.folder, f"{self.folder}/{self.folder}"),
            self.is_root,
            name=self.name,
            expected=f"{self.folder}/ with {_IMAGES}/ and {_READINGS}/",
            how_to_get=self.how_to_get,
        )

    def is_root(self, folder: Path) -> bool:
        """Whether `folder` holds images of this set."""
        images = folder / _IMAGES
        return images.is_dir() and any(images.glob(f"{self.prefix}_*"))


@dataclass(frozen=True)
class Reading:
    """A reading's file: sex F, M, O or "", age in whole years or "", and what was seen."""

    sex: str = ""
    age: str = ""
    text: str = ""


@dataclass(frozen=True)
class Found:
    """Records in order of their names, and the rows of their digest."""

    records: tuple[SourceRecord, ...]
    rows: tuple[tuple[str, ...], ...]


def read_hospital(
    hospital: Hospital, root: Path, masks: Mapping[str, tuple[Masks, tuple[Path, ...]]]
) -> Found:
    """Return the records of a set.

    Patients are not numbered; a reading that says "same pt as MCUCXR_0162_1" joins the two, and so
    do files with the same bytes. An image whose reading alone is there is a record whose
    `read_image` raises. The report is the reading.

    Args:
        hospital: Which set.
        root: As `Hospital.find` returns it.
        masks: By image: reads its mask; the files that it reads.

    Raises:
        DataError: A reading that is no text.
    """
    pattern = re.compile(rf"{hospital.prefix}_\d{{4}}_[01]")
    images = {path.stem: path for path in list_pictures(root / _IMAGES)}
    folder = root / _READINGS
    texts = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    names = sorted(name for name in {*images, *texts} if pattern.fullmatch(name))
    _warn(hospital, names, images, texts)
    readings = {name: _read(texts[name]) if name in texts else Reading() for name in names}
    with known_digests(root) as digest:
        rows = tuple(
            (
                name,
                digest(images.get(name)),
                digest(texts.get(name)),
                *(digest(path) for path in (masks[name][1] if name in masks else ())),
            )
            for name in names
        )
    copies = {row[0]: row[1] for row in rows if row[1] not in ("missing", "unreadable")}
    patients = join_patients(
        {
            name: [name, *_ANY_NAME.findall(readings[name].text), copies.get(name, name)]
            for name in names
        }
    )
    return Found(
        tuple(
            _record(
                hospital, name, images.get(name), readings[name], patients[name], masks.get(name)
            )
            for name in names
        ),
        rows,
    )


def _warn(
    hospital: Hospital, names: list[str], images: Mapping[str, Path], texts: Mapping[str, Path]
) -> None:
    others = len(images.keys() - set(names))
    if others:
        logger.warning(
            "%d picture(s) are not named as in %s and are not used.", others, hospital.name
        )
    without = len(set(names) - texts.keys())
    if without:
        logger.warning("%d image(s) of %s have no reading.", without, hospital.name)


def _read(path: Path) -> Reading:
    try:
        # Some of the files come from Windows.
        text = path.read_text(encoding="cp1252").replace("\ufeff", "")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected the text of a reading, got {error}. Fetch it again, or delete it."
        ) from None
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    about = [line for line in lines if _ABOUT_THE_PATIENT.match(line.lower())]
    sex = next((match for line in about if (match := _SEX.search(_after_label(line)))), None)
    age = next((match for line in about if (match := _AGE.search(line))), None)
    return Reading(
        sex=sex["sex"][0].upper() if sex else "",
        age=str(int(age["number"]) // _UNITS_A_YEAR[age["unit"].lower()]) if age else "",
        text=" ".join(line for line in lines if line not in about),
    )


def _after_label(line: str) -> str:
    # "Patient's Sex: F": the label itself holds letters that read as a sex.
    return line.partition(":")[2] or line if "patient" in line.lower() else line


def _record(
    hospital: Hospital,
    name: str,
    image: Path | None,
    reading: Reading,
    patient: str,
    mask: tuple[Masks, tuple[Path, ...]] | None,
) -> SourceRecord:
    return SourceRecord(
        record_id=name,
        patient_id=patient,
        labels=(CLASSES[int(name[-1])],),
        source=f"{hospital.folder}/{_IMAGES}/{name}.png",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, image, "L")
        if image
        else functools.partial(
            refuse,
            f"Expected {name}.png in {_IMAGES}/ beside its reading, found none. Fetch it again, or "
            "delete the reading.",
        ),
        read_mask=mask[0] if mask else None,
        report=reading.text,
        columns={"dataset": hospital.dataset, "sex": reading.sex, "age": reading.age},
    )
