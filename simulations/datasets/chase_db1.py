"""CHASE_DB1: fundus photographs of both eyes of children, vessels drawn by two observers.

    CHASEDB1/Image_<child><L|R>.jpg             RGB, 999x960
    CHASEDB1/Image_<child><L|R>_1stHO.png       first observer, 1 bit
    CHASEDB1/Image_<child><L|R>_2ndHO.png       second observer

The child is the patient: both eyes stay on one side of a split. There is no official split, and
no class labels.
"""

import functools
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.pictures import list_pictures, read_mask, read_picture, refuse

logger = logging.getLogger(__name__)

STRUCTURES = ("vessel",)

HOW_TO_GET = (
    "Download CHASEDB1.zip from https://researchdata.kingston.ac.uk/96/, unpack it and name the "
    "folder that holds Image_01L.jpg with --data."
)

_FILE = re.compile(r"(?P<name>Image_(?P<child>\d+)(?P<eye>[LR]))(_(?P<observer>1st|2nd)HO)?")
_OBSERVERS = {1: "1st", 2: "2nd"}
_EYES = {"L": "left", "R": "right"}

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "chase_db1 loader 1"


@dataclass
class _Eye:
    """The files of one photograph, as far as they are there."""

    name: str
    child: str
    eye: str
    image: Path | None = None
    mask: Path | None = None


def load_chase_db1(folder: Path, observer: Literal[1, 2] = 1) -> SourceDataset:
    """Read CHASE_DB1 from `folder`, which is CHASEDB1 or holds it.

    A photograph that is missing while a mask is there is a record whose `read_image` raises; one
    without a mask has none. Column `eye` is left or right.

    Args:
        folder: What `--data` names.
        observer: Whose masks: the first is the usual reference, and how well the second agrees
            with it is the natural ceiling.

    Raises:
        DataError: No such folder, or another observer.
    """
    if observer not in _OBSERVERS:
        raise DataError(f"Expected observer 1 or 2 of CHASE_DB1, got {observer}.")
    root = find_root(
        folder,
        ("CHASEDB1", "CHASE_DB1"),
        lambda root: any(_FILE.fullmatch(path.stem) for path in root.iterdir()),
        name="CHASE_DB1",
        expected="CHASEDB1/ with Image_01L.jpg, Image_01L_1stHO.png and so on",
        how_to_get=HOW_TO_GET,
    )
    eyes = _find_eyes(root, _OBSERVERS[observer])
    files = ((one.name, file_digest(one.image), file_digest(one.mask)) for one in eyes)
    return SourceDataset(
        name="CHASE_DB1",
        licence="CC BY 4.0",
        citation=(
            "Fraz MM et al. An ensemble classification-based approach applied to retinal blood "
            "vessel segmentation. IEEE Trans Biomed Eng 59:2538 (2012)."
        ),
        classes=(),
        records=tuple(_record(one) for one in eyes),
        digest=dataset_digest(f"{_LOADER} observer {observer}", files),
        structures=STRUCTURES,
    )


def _find_eyes(root: Path, observer: str) -> list[_Eye]:
    eyes: dict[str, _Eye] = {}
    num_others = 0
    for path in list_pictures(root):
        match = _FILE.fullmatch(path.stem)
        if match is None:
            num_others += 1
            continue
        name = match["name"]
        one = eyes.setdefault(name, _Eye(name, match["child"], _EYES[match["eye"]]))
        if match["observer"] is None:
            one.image = path
        elif match["observer"] == observer:
            one.mask = path
    if num_others:
        logger.warning("%d picture(s) are not named as in CHASE_DB1 and are not used.", num_others)
    without = sum(one.mask is None for one in eyes.values())
    if without:
        logger.warning("%d image(s) have no mask of the %s observer.", without, observer)
    return [eyes[name] for name in sorted(eyes)]


def _record(one: _Eye) -> SourceRecord:
    return SourceRecord(
        record_id=one.name,
        patient_id=one.child,
        labels=(),
        source=one.image.name if one.image else f"{one.name}.jpg",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, one.image, "RGB")
        if one.image
        else functools.partial(
            refuse,
            f"Expected {one.name}.jpg beside its masks, found none. Fetch it again, or delete "
            "its masks.",
        ),
        read_mask=functools.partial(read_mask, one.mask) if one.mask else None,
        columns={"eye": one.eye},
    )
