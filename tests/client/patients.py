"""A made-up hospital for tests of statistics: stores in memory, patients with known images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.client.site import SiteConfig
from medfed.common.study import StudyConfig

CLASSES = ("normal", "nodule", "effusion")
SIDE = 16


@dataclass(frozen=True)
class Image:
    """One image: a patient's, showing classes, all pixels of one grey level or given."""

    patient: str
    classes: tuple[int, ...]
    pixels: int | npt.NDArray[np.uint8] = 100
    shape: tuple[int, int] = (SIDE, SIDE)


def study_of(**sections: Any) -> StudyConfig:
    """A study of single labels that asks for statistics; without noise it has no privacy."""
    asked = {"collect": True, "bins": 8, **sections.pop("statistics", {})}
    unit = "patient" if asked.get("noise_multiplier") else "none"
    return StudyConfig.model_validate(
        {
            "study": {"name": "statistics", "seed": 3},
            "task": {"classes": CLASSES, **sections.pop("task", {})},
            "data": {"image_size": SIDE, **sections.pop("data", {})},
            "training": {"local_steps": 1},
            "privacy": {"unit": unit, **sections.pop("privacy", {})},
            "statistics": asked,
            **sections,
        }
    )


def site_of(folder: Path, **policy: Any) -> SiteConfig:
    """A site whose policy is the default but for `policy`."""
    return SiteConfig.model_validate(
        {"name": "one", "data": {"stores": ["store"]}, "policy": policy, "folder": folder}
    )


def images_of(images: Sequence[Image], study: StudyConfig, **store: Any) -> ImageSet:
    """A training side that holds `images`, as a prepared store would."""
    largest = tuple(max(image.shape[axis] for image in images) for axis in (0, 1))
    channels = study.data.total_channels
    pixels = np.zeros((len(images), channels, *largest), np.uint8)
    labels = np.zeros((len(images), len(study.task.label_names)), np.uint8)
    for row, image in enumerate(images):
        pixels[row][:, : image.shape[0], : image.shape[1]] = image.pixels
        labels[row, list(image.classes)] = 1
    fields: dict[str, Any] = {
        "folder": Path(),
        "key": "store",
        "classes": study.task.label_names,
        "mode": study.task.mode,
        "images_NCHW": pixels,
        "masks_NHW": None,
        "labels": labels.argmax(axis=1) if study.task.one_label else labels,
        "patients": tuple(image.patient for image in images),
        "splits": ("",) * len(images),
        "columns": {},
        "reports": ("",) * len(images),
        "record_ids": tuple(map(str, range(len(images)))),
        "num_quarantined": 0,
        "task": study.task.type,
        "shapes": np.array([image.shape for image in images])
        if study.data.fit == "patch"
        else None,
    }
    size = len(images)
    return ImageSet((Store(**{**fields, **store}),), np.zeros(size, np.int64), np.arange(size))


def crowd(number: int, classes: tuple[int, ...] = (0,), level: int = 100) -> list[Image]:
    """`number` patients of one image each."""
    return [Image(f"{classes}-{level}-{n:04d}", classes, level) for n in range(number)]
