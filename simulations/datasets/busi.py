"""BUSI: breast ultrasound images with lesion masks, in their published layout.

    Dataset_BUSI_with_GT/<class>/<class> (N).png            class: normal, benign or malignant
    Dataset_BUSI_with_GT/<class>/<class> (N)_mask.png       and _mask_1.png, ... for more lesions

The files hold no patients (600 women, 780 images): each image counts as a patient of its own, so
two images of one woman may lie on both sides of a split, and a guarantee for a patient is one for
an image. There is no official split.
"""

import functools
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.pictures import list_pictures, read_mask, read_picture, refuse

logger = logging.getLogger(__name__)

CLASSES = ("normal", "benign", "malignant")
STRUCTURES = ("lesion",)

HOW_TO_GET = (
    "Download Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, unpack it "
    "and name the folder that holds Dataset_BUSI_with_GT/ with --data."
)

_FILE = re.compile(r"(?P<name>(?P<label>\w+) \((?P<number>\d+)\))(?P<mask>_mask(_\d+)?)?")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "busi loader 1"


@dataclass
class _Scan:
    """The files of one image, as far as they are there."""

    name: str
    label: str
    number: int
    image: Path | None = None
    masks: list[Path] = field(default_factory=list)


def load_busi(folder: Path) -> SourceDataset:
    """Read BUSI from `folder`, which is Dataset_BUSI_with_GT or holds it.

    Several masks of one image are united; those of normal images are empty. Images with the very
    same pixels share a patient key, so that no split parts them; where their classes differ, all
    are kept and a warning names them. An image that is missing while its mask is there is a record
    whose `read_image` raises. Every image is decoded here, to find copies.

    Raises:
        DataError: No such folder.
    """
    root = find_root(
        folder,
        ("Dataset_BUSI_with_GT", "Dataset_BUSI/Dataset_BUSI_with_GT"),
        lambda root: any((root / label).is_dir() for label in CLASSES),
        name="BUSI",
        expected="Dataset_BUSI_with_GT/ with normal/, benign/ and malignant/",
        how_to_get=HOW_TO_GET,
    )
    scans = _find_scans(root)
    patients = _patients(scans)
    files = (
        (one.name, file_digest(one.image), *(file_digest(mask) for mask in one.masks))
        for one in scans
    )
    return SourceDataset(
        name="BUSI",
        licence="CC BY 4.0",
        citation=(
            "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. Data "
            "in Brief 28:104863 (2020)."
        ),
        classes=CLASSES,
        records=tuple(_record(one, patients[one.name]) for one in scans),
        digest=dataset_digest(_LOADER, files),
        structures=STRUCTURES,
    )


def _find_scans(root: Path) -> list[_Scan]:
    """The images by class and, as numbers, by number."""
    scans: dict[tuple[str, int], _Scan] = {}
    num_others = 0
    for label in (label for label in CLASSES if (root / label).is_dir()):
        for path in list_pictures(root / label):
            match = _FILE.fullmatch(path.stem)
            if match is None or match["label"] != label:
                num_others += 1
                continue
            number = int(match["number"])
            one = scans.setdefault((label, number), _Scan(match["name"], label, number))
            if match["mask"]:
                one.masks.append(path)
            else:
                one.image = path
    if num_others:
        logger.warning(
            "%d picture(s) are not named after their folder's class and are not used.", num_others
        )
    without = sum(not one.masks for one in scans.values())
    if without:
        logger.warning("%d image(s) have no mask.", without)
    return [scans[key] for key in sorted(scans, key=lambda key: (CLASSES.index(key[0]), key[1]))]


def _patients(scans: Sequence[_Scan]) -> dict[str, str]:
    """The patient key by image: the name of the first image with the same pixels."""
    copies: dict[str, list[_Scan]] = defaultdict(list)
    for one in scans:
        copies[_pixel_digest(one)].append(one)
    for same in copies.values():
        if len({one.label for one in same}) > 1:
            logger.warning(
                "%s are the same picture with different classes. All are kept, as one patient.",
                " and ".join(one.name for one in same),
            )
    return {one.name: same[0].name for same in copies.values() for one in same}


def _pixel_digest(one: _Scan) -> str:
    if one.image is None:
        return one.name
    try:
        pixels = read_picture(one.image, "L")
    except UnreadableImageError:
        # Reading it again, as a record, says why.
        return one.name
    return f"{pixels.shape} {hashlib.sha256(pixels.tobytes()).hexdigest()}"


def _record(one: _Scan, patient: str) -> SourceRecord:
    return SourceRecord(
        record_id=one.name,
        patient_id=patient,
        labels=(one.label,),
        source=f"{one.label}/{one.name}.png",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, one.image, "L")
        if one.image
        else functools.partial(
            refuse,
            f"Expected {one.name}.png in {one.label}/ beside its mask, found none. Fetch it "
            "again, or delete its masks.",
        ),
        read_mask=functools.partial(_read_masks, tuple(one.masks)) if one.masks else None,
    )


def _read_masks(paths: Sequence[Path]) -> npt.NDArray[np.uint8]:
    masks = [read_mask(path) for path in paths]
    if len({mask.shape for mask in masks}) > 1:
        sizes = ", ".join(
            f"{path.name} {list(m.shape)}" for path, m in zip(paths, masks, strict=True)
        )
        raise UnreadableImageError(
            f"Expected masks of one size for one image, got {sizes}. Fetch them again."
        )
    united: npt.NDArray[np.uint8] = np.maximum.reduce(masks)
    return united
