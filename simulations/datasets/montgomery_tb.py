"""Montgomery County tuberculosis radiographs, with masks of both lungs.

    MontgomerySet/CXR_png/MCUCXR_0001_0.png         0 normal (80), 1 tuberculosis (58)
    MontgomerySet/ClinicalReadings/MCUCXR_0001_0.txt
    MontgomerySet/ManualMask/leftMask/MCUCXR_0001_0.png, rightMask/

There is no official split. "left" and "right" are the publisher's names of the masks.
"""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset
from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.nlm_tb import (
    CITATION,
    CLASSES,
    LICENCE,
    Found,
    Hospital,
    Masks,
    read_hospital,
)
from medfed.simulations.datasets.pictures import list_pictures, read_mask

logger = logging.getLogger(__name__)

STRUCTURES = ("left lung", "right lung")

HOW_TO_GET = (
    "Download https://openi.nlm.nih.gov/imgs/collections/NLM-MontgomeryCXRSet.zip (about 600 MB), "
    "unpack it and name the folder that holds MontgomerySet/ with --data."
)

HOSPITAL = Hospital(
    name="Montgomery County CXR",
    dataset="montgomery",
    prefix="MCUCXR",
    folder="MontgomerySet",
    how_to_get=HOW_TO_GET,
)

_SIDES = ("leftMask", "rightMask")

# Part of the digest: raise it when this module or nlm_tb turns the same files into other records.
_LOADER = "montgomery_tb loader 1"


def load_montgomery_tb(folder: Path) -> SourceDataset:
    """Read the Montgomery set from `folder`, which is MontgomerySet or holds it.

    Columns are `dataset`, `sex` (F, M or O) and `age` (whole years). Images are grey, and as wide
    as 4892 pixels. See `medfed.simulations.datasets.nlm_tb` for patients and readings.

    Raises:
        DataError: No such folder, or a reading that is no text.
    """
    found = read_montgomery(folder)
    return SourceDataset(
        name=HOSPITAL.name,
        licence=LICENCE,
        citation=CITATION,
        classes=CLASSES,
        records=found.records,
        digest=dataset_digest(_LOADER, found.rows),
        structures=STRUCTURES,
    )


def read_montgomery(folder: Path) -> Found:
    """Return the records; masks are 0 background, 1 left lung, 2 right lung."""
    root = HOSPITAL.find(folder)
    return read_hospital(HOSPITAL, root, _find_masks(root))


def _find_masks(root: Path) -> Mapping[str, tuple[Masks, tuple[Path, ...]]]:
    folders = [root / "ManualMask" / side for side in _SIDES]
    if not all(folder.is_dir() for folder in folders):
        logger.warning("There is no ManualMask/leftMask and rightMask: no image has a lung mask.")
        return {}
    left, right = ({path.stem: path for path in list_pictures(folder)} for folder in folders)
    if left.keys() != right.keys():
        logger.warning(
            "%d image(s) have the mask of one lung only, which is not used.",
            len(left.keys() ^ right.keys()),
        )
    return {
        name: (
            functools.partial(_read_both, (left[name], right[name])),
            (left[name], right[name]),
        )
        for name in sorted(left.keys() & right.keys())
    }


def _read_both(paths: tuple[Path, Path]) -> npt.NDArray[np.uint8]:
    left, right = (read_mask(path) for path in paths)
    if left.shape != right.shape:
        raise UnreadableImageError(
            f"Expected masks of one size for {paths[0].name}, got {list(left.shape)} and "
            f"{list(right.shape)}. Fetch them again."
        )
    # Nothing is in both lungs; where outlines touch, the left one was drawn first.
    return np.where(left > 0, np.uint8(1), (2 * right).astype(np.uint8))
