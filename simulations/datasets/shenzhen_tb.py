"""Shenzhen tuberculosis radiographs, of one hospital in Guangdong.

    ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png         0 normal (326), 1 tuberculosis (336)
    ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0001_0.txt
    ChinaSet_AllFiles/mask/CHNCXR_0001_0_mask.png       optional: lungs of 566, by Stirenko et al.

There is no official split. The masks are not the publisher's: students of Kyiv drew them
(https://doi.org/10.1109/ELNANO.2018.8477564).
"""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

from medfed.client.data.records import SourceDataset
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

STRUCTURES = ("lungs",)

HOW_TO_GET = (
    "Download https://openi.nlm.nih.gov/imgs/collections/ChinaSet_AllFiles.zip (about 3.8 GB), "
    "unpack it and name the folder that holds ChinaSet_AllFiles/ with --data. For lung masks "
    "unpack https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask into it."
)

HOSPITAL = Hospital(
    name="Shenzhen Hospital CXR",
    dataset="shenzhen",
    prefix="CHNCXR",
    folder="ChinaSet_AllFiles",
    how_to_get=HOW_TO_GET,
)

# Kaggle's archive holds a folder of the same name in the folder.
_MASK_FOLDERS = ("mask/mask", "mask")
_MASK_ENDING = "_mask"

# Part of the digest: raise it when this module or nlm_tb turns the same files into other records.
_LOADER = "shenzhen_tb loader 1"


def load_shenzhen_tb(folder: Path) -> SourceDataset:
    """Read the Shenzhen set from `folder`, which is ChinaSet_AllFiles or holds it.

    Columns are `dataset`, `sex` (F or M) and `age` (whole years; infants have 0). Images are stored
    in colour and are grey. See `medfed.simulations.datasets.nlm_tb` for patients and readings.

    Raises:
        DataError: No such folder, or a reading that is no text.
    """
    found = read_shenzhen(folder)
    return SourceDataset(
        name=HOSPITAL.name,
        licence=LICENCE,
        citation=CITATION,
        classes=CLASSES,
        records=found.records,
        digest=dataset_digest(_LOADER, found.rows),
        structures=STRUCTURES,
    )


def read_shenzhen(folder: Path) -> Found:
    """Return the records; masks are 0 background, 1 lungs."""
    root = HOSPITAL.find(folder)
    return read_hospital(HOSPITAL, root, _find_masks(root))


def _find_masks(root: Path) -> Mapping[str, tuple[Masks, tuple[Path, ...]]]:
    folder = next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        logger.info("There is no mask/ beside CXR_png/: no image of Shenzhen has a lung mask.")
        return {}
    return {
        path.stem.removesuffix(_MASK_ENDING): (functools.partial(read_mask, path), (path,))
        for path in list_pictures(folder)
    }
