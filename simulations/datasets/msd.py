"""MSD: any task of the Medical Segmentation Decathlon, 3-D volumes with labels.

    Task04_Hippocampus/dataset.json             names of the labels, list of training cases
    Task04_Hippocampus/imagesTr/<case>.nii.gz
    Task04_Hippocampus/labelsTr/<case>.nii.gz
    Task04_Hippocampus/imagesTs/                without labels: not read

or, without dataset.json, the hippocampus as a well-known course hands it out:

    TrainingSet/images/hippocampus_NNN.nii.gz
    TrainingSet/labels/hippocampus_NNN.nii.gz

The files hold no patients: each case counts as one. In the hippocampus task left and right of one
person are two cases, so both sides of a split may hold one of them. There is no official split of
the labelled cases, and no class labels.

Several sequences of one case are channels of one file here (BrainTumour: 4-D, [D, H, W, C]). Where
they are files of their own, as BraTS publishes them, any of them may be missing: a loader gives
one record a case, with `views` from "t1", "t1ce", "t2" and "flair" to a reader of each file that
is there, and no entry for one that is not.
"""

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.client.data.nifti import (
    check_same_geometry,
    read_geometry,
    read_labels,
    read_volume,
    rescale_intensity,
)
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root

logger = logging.getLogger(__name__)

HOW_TO_GET = (
    "Download a task's archive, e.g. Task04_Hippocampus.tar, from http://medicaldecathlon.com "
    "(https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar), unpack it and "
    "name the task's folder with --data."
)

_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_SUFFIXES = (".nii.gz", ".nii")
_COURSE = "hippocampus_"
_MAX_CHANNELS = 4

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "msd loader 1"


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What dataset.json says, or what is known of the course's copy."""

    name: str
    structures: tuple[str, ...]
    cases: frozenset[str] | None


@dataclass(frozen=True, kw_only=True)
class _Case:
    """The files of one case. They need not exist: then reading says so."""

    name: str
    image: Path
    label: Path


def load_msd(folder: Path) -> SourceDataset:
    """Read a task from `folder`, which is the task's folder or holds one.

    Volumes are turned to right, anterior, superior; their intensities are mapped to 0..255 by the
    0.5th and 99.5th percentile of each volume's finite voxels. Names of structures are in lower
    case. A case without image or label, with a label of another geometry or with values that are
    no structure is a record whose `read_image` or `read_mask` raises. Volumes that dataset.json
    does not list are not loaded; a warning is logged with their number.

    Raises:
        DataError: No such folder, several tasks, or a dataset.json that does not name the labels
            0 (background), 1, 2, ... and the training cases.
    """
    root = _find_root(folder)
    images, labels = next(
        (root / images, root / labels) for images, labels in _FOLDERS if (root / images).is_dir()
    )
    found = _case_names(images) | _case_names(labels)
    task = _read_task(root, found)
    if task.cases is not None and found - task.cases:
        logger.warning(
            "%d volume(s) are not among the training cases of dataset.json and are not used.",
            len(found - task.cases),
        )
    cases = [
        _Case(name=name, image=_file(images, name), label=_file(labels, name))
        for name in sorted(found if task.cases is None else task.cases)
    ]
    files = ((one.name, _digest(one.image), _digest(one.label)) for one in cases)
    return SourceDataset(
        name=f"MSD {task.name}",
        licence="CC BY-SA 4.0",
        citation=(
            "Antonelli M et al. The Medical Segmentation Decathlon. Nat Commun 13:4128 (2022)."
        ),
        classes=(),
        records=tuple(_record(one, task.structures) for one in cases),
        digest=dataset_digest(_LOADER, [task.structures, *files]),
        structures=task.structures,
        dimensions=3,
    )


def _find_root(folder: Path) -> Path:
    tasks = sorted(path.name for path in folder.glob("Task*") if path.is_dir())
    if len(tasks) > 1 and not any((folder / images).is_dir() for images, _ in _FOLDERS):
        raise DataError(
            f"Expected the folder of one task of the MSD, got {folder} with {', '.join(tasks)}. "
            "Name one of them with --data."
        )
    return find_root(
        folder,
        ("TrainingSet", *tasks),
        lambda root: any(
            (root / images).is_dir() and (root / labels).is_dir() for images, labels in _FOLDERS
        ),
        name="an MSD task",
        expected="imagesTr/ and labelsTr/ (or images/ and labels/)",
        how_to_get=HOW_TO_GET,
    )


def _case_names(folder: Path) -> set[str]:
    # The published archives hold a hidden "._" file beside every volume.
    return {
        path.name.removesuffix(suffix)
        for path in folder.iterdir()
        for suffix in _SUFFIXES
        if path.name.endswith(suffix) and not path.name.startswith(".")
    }


def _file(folder: Path, case: str) -> Path:
    """The file of `case`, which may not exist."""
    candidates = [folder / f"{case}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _digest(path: Path) -> str:
    return file_digest(path if path.exists() else None)


def _read_task(root: Path, found: set[str]) -> _Task:
    path = root / "dataset.json"
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON ({error}). Fetch the file again.") from None
        return _described_task(path, content)
    if not all(name.startswith(_COURSE) for name in found):
        raise DataError(
            f"Expected dataset.json in {root}, which names the structures, found none. {HOW_TO_GET}"
        )
    return _Task(name="Hippocampus", structures=("anterior", "posterior"), cases=None)


def _described_task(path: Path, content: Any) -> _Task:
    try:
        names = {int(index): str(name) for index, name in content["labels"].items()}
        files = [PurePosixPath(entry["image"]).name for entry in content["training"]]
        name = str(content["name"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{path}: expected the keys name, labels {{"0": "background", "1": ...}} and training '
            f"[{{image, label}}, ...], got something else ({error!r}). Fetch the file again."
        ) from None
    if sorted(names) != list(range(len(names))) or not 2 <= len(names) <= 256:
        raise DataError(
            f"{path}: expected the labels 0 (background), 1, 2, ..., got "
            f"{', '.join(map(str, sorted(names)))}. Fetch the file again."
        )
    return _Task(
        name=name,
        structures=tuple(names[index].strip().lower() for index in range(1, len(names))),
        cases=frozenset(file.removesuffix(".gz").removesuffix(".nii") for file in files),
    )


def _record(one: _Case, structures: tuple[str, ...]) -> SourceRecord:
    try:
        spacing_mm = read_geometry(one.image).spacing_mm
    except UnreadableImageError:
        # Reading the image says why.
        spacing_mm = None
    return SourceRecord(
        record_id=one.name,
        patient_id=one.name,
        labels=(),
        source=f"{one.image.parent.name}/{one.image.name}",
        read_image=functools.partial(_read_image, one),
        read_mask=functools.partial(_read_mask, one, structures),
        spacing_mm=spacing_mm,
    )


def _read_image(one: _Case) -> npt.NDArray[np.generic]:
    for path, kind in ((one.image, "image"), (one.label, "label")):
        if not path.is_file():
            raise UnreadableImageError(
                f"Expected the {kind} of {one.name} at {path}, found none. Fetch it again, or "
                "leave the case out."
            )
    check_same_geometry(read_geometry(one.image), read_geometry(one.label), one.name)
    values = read_volume(one.image)
    if values.ndim == 4 and values.shape[-1] > _MAX_CHANNELS:
        raise UnreadableImageError(
            f"{one.image}: expected at most {_MAX_CHANNELS} channels, got {values.shape[-1]}. "
            "Is it a series over time?"
        )
    return rescale_intensity(values, str(one.image))


def _read_mask(one: _Case, structures: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    values = read_labels(one.label)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > len(structures):
        raise UnreadableImageError(
            f"{one.label}: expected labels 0 to {len(structures)} ({', '.join(structures)}), got "
            f"{lowest} to {highest}. Is it of another organ?"
        )
    return values.astype(np.uint8)
