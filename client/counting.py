"""Counts a site's training images, patient by patient: what statistics are released from.

The result is exact, and private. Pixels are read in blocks of bounded memory. What was counted is
kept in the state folder, `statistics/counted-*.json`, by the stores' keys and the images of this
side: the next study that asks the same does not read the pixels again.

Shapes: N images, L classes, C channels of all views, B bins.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.site_data import ImageSet
from medfed.common.files import make_private, write_secret
from medfed.common.statistics import IMAGES_PER_PATIENT, SIZES, Floats, quantities
from medfed.common.study import StudyConfig

log = logging.getLogger(__name__)

STATISTICS_FOLDER = "statistics"

# Raise this with any change of what is counted: what was kept is then counted anew.
_VERSION = 1
_BLOCK_BYTES = 32 << 20
# Ranks the classes of patients who have more than count. May be public: see `_kept`.
_KEY = b"medfed statistics"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Counted:
    """Sums over the patients of one side of a site. Private.

    Attributes:
        exact: By quantity (`common.statistics`), as they are.
        bounded: The same with each patient's part within the quantity's bound.
        holders: [C, B] patients with any pixel in each bin of grey levels.
        one_class: Whether every patient has at least one class.
    """

    exact: dict[str, Floats]
    bounded: dict[str, Floats]
    holders: Floats
    one_class: bool


def count(data: ImageSet, study: StudyConfig, progress: Progress | None = None) -> Counted:
    """Count the images of `data`, reading all pixels.

    Args:
        data: One side of a site.
        study: Bins, bounds and classes.
        progress: Called with (done, total) images.
    """
    asked = quantities(study)
    exact = {quantity.name: np.zeros(quantity.shape) for quantity in asked}
    bounded = {quantity.name: np.zeros(quantity.shape) for quantity in asked}
    holders = np.zeros((study.data.total_channels, study.statistics.bins))
    one_class, done = True, 0
    for group in data.groups:
        parts = _of_patient(data, group, study)
        classes = np.flatnonzero(parts.pop("classes", np.zeros(0)))
        one_class = one_class and len(classes) > 0
        for name, part in parts.items():
            exact[name] += part
            limit = study.privacy.images_per_patient if name == "images" else np.inf
            bounded[name] += np.minimum(part, limit)
        if "classes" in exact:
            exact["classes"][classes] += 1
            most = study.statistics.classes_per_patient
            bounded["classes"][_kept(data.patients[group[0]], classes, most)] += 1
        holders += parts["intensities"] > 0
        done += len(group)
        if progress is not None:
            progress(done, len(data))
    return Counted(exact, bounded, holders, one_class)


def count_once(
    data: ImageSet, study: StudyConfig, state_folder: Path, progress: Progress | None = None
) -> Counted:
    """Return what `count` does, from the state folder if it was counted before.

    Raises:
        OSError: It could not be kept.
    """
    path = state_folder / STATISTICS_FOLDER / f"counted-{_digest(data, study)[:32]}.json"
    if path.exists():
        try:
            return _read(path, study)
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s): the images are counted again.", path.name, error)
    counted = count(data, study, progress)
    make_private(path.parent)
    table = {
        "exact": {name: array.tolist() for name, array in counted.exact.items()},
        "bounded": {name: array.tolist() for name, array in counted.bounded.items()},
        "holders": counted.holders.tolist(),
        "one_class": counted.one_class,
    }
    write_secret(path, json.dumps(table, sort_keys=True).encode() + b"\n")
    return counted


def _of_patient(
    data: ImageSet, group: npt.NDArray[np.int64], study: StudyConfig
) -> dict[str, Floats]:
    """One patient's part of every quantity, without bounds; 1 in each class of `classes`."""
    shape = (study.data.total_channels, study.statistics.bins)
    mass, seen = np.zeros(shape), np.zeros(shape[0])
    largest = 0
    for chosen in _blocks(data, group):
        present = _present(data, chosen, study)
        for position, image, there in zip(
            chosen.tolist(), data.images_NCHW(chosen), present, strict=True
        ):
            extent = data.shape_of(position) or image.shape[1:]
            largest = max(largest, *extent)
            part = image[(slice(None), *(slice(side) for side in extent))]
            for channel in np.flatnonzero(there):
                mass[channel] += _histogram(part[channel], shape[1])
                seen[channel] += 1
    parts: dict[str, Floats] = {
        "patients": np.ones(1),
        "images": np.full(1, float(len(group))),
        "images_per_patient": _one_in(len(group), IMAGES_PER_PATIENT),
        "intensities": mass / np.maximum(seen, 1)[:, None],
    }
    if study.task.label_names:
        parts["classes"] = _classes(data, group, len(study.task.label_names))
    if study.data.fit == "patch":
        parts["sizes"] = _one_in(largest, SIZES)
    return parts


def _blocks(data: ImageSet, group: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    largest = max(store.images_NCHW[:1].nbytes for store in data.stores)
    step = max(1, _BLOCK_BYTES // max(1, largest))
    return (group[start : start + step] for start in range(0, len(group), step))


def _present(
    data: ImageSet, chosen: npt.NDArray[np.int64], study: StudyConfig
) -> npt.NDArray[np.bool_]:
    """Which channels are there, [N, C]: those of a missing view are not."""
    if data.present is None:
        return np.ones((len(chosen), study.data.total_channels), dtype=bool)
    return np.repeat(data.present[chosen] > 0, study.data.channels, axis=1)


def _histogram(pixels: npt.NDArray[np.uint8], bins: int) -> Floats:
    """The shares of grey levels in each of `bins` equal bins over 0..255."""
    counts = np.bincount(pixels.reshape(-1), minlength=256).reshape(bins, -1).sum(axis=1)
    shares: Floats = counts / pixels.size
    return shares


def _classes(data: ImageSet, group: npt.NDArray[np.int64], num_classes: int) -> Floats:
    labels = data.labels[group]
    shown = np.zeros(num_classes)
    if labels.ndim == 1:
        shown[labels] = 1.0
    else:
        shown[labels.any(axis=0)] = 1.0
    return shown


def _one_in(number: int, starts: tuple[int, ...]) -> Floats:
    """1 in the bin that holds `number`."""
    place = np.zeros(len(starts))
    place[np.searchsorted(starts, number, side="right") - 1] = 1.0
    return place


def _kept(patient: str, classes: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most `most` of a patient's classes, as if drawn at random for each patient.

    By a hash of patient and class alone, so that the bound holds whoever the others are.
    """
    if len(classes) <= most:
        return classes

    def rank(index: int) -> bytes:
        text = f"{patient}\x1f{index}".encode()
        return hashlib.blake2b(text, digest_size=16, key=_KEY).digest()

    return np.array(sorted(classes.tolist(), key=rank)[:most], dtype=np.int64)


def _digest(data: ImageSet, study: StudyConfig) -> str:
    """Name what is counted: the images and what decides the sums over them."""
    names = {
        "version": _VERSION,
        "stores": [store.key for store in data.stores],
        "bins": study.statistics.bins,
        "classes_per_patient": study.statistics.classes_per_patient,
        "images_per_patient": study.privacy.images_per_patient,
        "quantities": [[q.name, list(q.shape)] for q in quantities(study)],
    }
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
    for rows in (data.store_index, data.row_index):
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def _read(path: Path, study: StudyConfig) -> Counted:
    table = json.loads(path.read_bytes())
    shapes = {quantity.name: quantity.shape for quantity in quantities(study)}
    sums = {
        side: {name: np.array(table[side][name], dtype=np.float64) for name in shapes}
        for side in ("exact", "bounded")
    }
    counted = Counted(
        sums["exact"], sums["bounded"], np.array(table["holders"]), bool(table["one_class"])
    )
    found = [array.shape for side in sums.values() for array in side.values()]
    if found != [*shapes.values()] * 2 or counted.holders.shape != shapes["intensities"]:
        raise ValueError("it is of another form")
    return counted
