"""`SiteData`: the images that one site trains and is evaluated on, grouped by patient.

Shapes: N images of this side, B of them chosen, C channels, *S spatial, L labels, V views.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.store import Store, image_shape, open_store
from medfed.client.site import SiteConfig
from medfed.common.errors import DataError, LeakageError
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import Examples


@dataclass(frozen=True)
class ImageSet:
    """Images of one side of the split, by (store, row), read from the memory map on demand.

    With `tables` [C, 256] grey levels are replaced channel by channel as images are read
    (data.harmonise). Padding stays zero.

    With `unlabelled` nobody has labelled these images, as far as the study goes: labels and masks
    read as zeros and reports as empty, whatever a store may hold.
    """

    stores: tuple[Store, ...]
    store_index: npt.NDArray[np.int64]
    row_index: npt.NDArray[np.int64]
    tables: npt.NDArray[np.uint8] | None = None
    unlabelled: bool = False

    def __len__(self) -> int:
        return len(self.row_index)

    def images_NCHW(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return uint8 images for positions `chosen` in this set, in that order.

        NCDHW where they are volumes. Images of different size are padded with zeros at the far
        ends; `shape_of` says how far one goes.
        """
        images = self._gather([store.images_NCHW for store in self.stores], chosen)
        return images if self.tables is None else self._mapped(images, self.tables, chosen)

    def _mapped(
        self,
        images: npt.NDArray[np.uint8],
        tables: npt.NDArray[np.uint8],
        chosen: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.uint8]:
        mapped = np.empty_like(images)
        for channel, table in enumerate(tables):
            mapped[:, channel] = table[images[:, channel]]
        for image, position in zip(mapped, chosen.tolist(), strict=True):
            for axis, side in enumerate(self.shape_of(position) or (), start=1):
                np.moveaxis(image, axis, 0)[side:] = 0
        return mapped

    def masks_NHW(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
        """Return the masks of positions `chosen`, padded as the images are; None without any."""
        masks = [store.masks_NHW for store in self.stores]
        if any(part is None for part in masks):
            return None
        found = self._gather([part for part in masks if part is not None], chosen)
        return np.zeros_like(found) if self.unlabelled else found

    def _gather(
        self, parts: list[npt.NDArray[np.uint8]], chosen: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        if len(parts) == 1:
            return np.asarray(parts[0][self.row_index[chosen]])
        shape = np.max([part.shape[1:] for part in parts], axis=0)
        batch = np.zeros((len(chosen), *shape), dtype=np.uint8)
        owner = self.store_index[chosen]
        for number, part in enumerate(parts):
            mine = np.flatnonzero(owner == number)
            corner = tuple(slice(side) for side in part.shape[1:])
            for position in mine:
                batch[position][corner] = part[self.row_index[chosen[position]]]
        return batch

    def shape_of(self, position: int) -> tuple[int, ...] | None:
        """Return the spatial shape of one image, or None if all of the stored array is image."""
        shapes = self.stores[self.store_index[position]].shapes
        return None if shapes is None else tuple(shapes[self.row_index[position]].tolist())

    def examples(self, chosen: npt.NDArray[np.int64]) -> Examples:
        """Return what is known about the images at positions `chosen` besides their pixels."""
        reports = tuple(
            "" if self.unlabelled else self.stores[self.store_index[i]].reports[self.row_index[i]]
            for i in chosen.tolist()
        )
        return Examples(self.labels[chosen], self.masks_NHW(chosen), reports)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
        """Labels of the whole set: int64 [N] or uint8 [N, L]."""
        parts = [
            self.stores[s].labels[r] for s, r in zip(self.store_index, self.row_index, strict=True)
        ]
        labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
        if self.stores[0].one_label:
            labels = np.array(parts, np.int64)
        else:
            labels = np.array(parts, np.uint8).reshape(len(parts), len(self.stores[0].classes))
        return np.zeros_like(labels) if self.unlabelled else labels

    @cached_property
    def present(self) -> npt.NDArray[np.uint8] | None:
        """Which views each examination has, [N, V]; None for single images."""
        stores = [store.present for store in self.stores]
        if any(part is None for part in stores):
            return None
        return np.array(
            [stores[s][r] for s, r in zip(self.store_index, self.row_index, strict=True)],
            dtype=np.uint8,
        )

    def column(self, name: str) -> tuple[str, ...]:
        """Return a metadata column of the whole set; "" where a value is missing."""
        return tuple(
            self.stores[s].columns[name][r] if name in self.stores[s].columns else ""
            for s, r in zip(self.store_index, self.row_index, strict=True)
        )

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """Pseudonym of each image's patient."""
        return tuple(
            self.stores[s].patients[r]
            for s, r in zip(self.store_index, self.row_index, strict=True)
        )

    @cached_property
    def groups(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Positions of each patient's images, patients in order of pseudonym."""
        return groups_of(self.patients)


def groups_of(patients: Sequence[str]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return where each patient's images are, patients in order of pseudonym."""
    positions: dict[str, list[int]] = {}
    for position, patient in enumerate(patients):
        positions.setdefault(patient, []).append(position)
    return tuple(np.array(positions[p], dtype=np.int64) for p in sorted(positions))


@dataclass(frozen=True)
class SiteData:
    """A site's two sides of the split. No patient is on both.

    Attributes:
        train: Images to train on, with labels.
        test: Held-out images.
        unlabelled: Images of the training side that nobody has labelled; None if there are none.
    """

    train: ImageSet
    test: ImageSet
    unlabelled: ImageSet | None = None

    @property
    def num_unlabelled(self) -> int:
        """Images without labels."""
        return 0 if self.unlabelled is None else len(self.unlabelled)


def load_site_data(site: SiteConfig, study: StudyConfig) -> SiteData:
    """Open the stores that `site` names and check them against `study`.

    Raises:
        DataError: A store that is missing, damaged or prepared for another label set or size;
            an empty side.
        LeakageError: A patient on both sides.
    """
    stores = tuple(open_store(site.path(path)) for path in site.data.stores)
    for store in stores:
        _check_store(store, study)
    sides = (
        read_subset(site.path(site.data.subset), stores)
        if site.data.subset
        else _split_by_patient(stores, study.evaluation.test_fraction)
    )
    unlabelled = _image_set(stores, sides.get("unlabelled", []))
    data = SiteData(
        train=_image_set(stores, sides["train"]),
        test=_image_set(stores, sides["test"]),
        unlabelled=replace(unlabelled, unlabelled=True) if len(unlabelled) else None,
    )
    for side, images in (("train", data.train), ("test", data.test)):
        if not len(images):
            raise DataError(
                f"Site {site.name} has no {side} images. Give it more patients, or change "
                "evaluation.test_fraction."
            )
    trained = {*data.train.patients, *(data.unlabelled.patients if data.unlabelled else ())}
    if not trained.isdisjoint(data.test.patients):
        raise LeakageError(
            f"Site {site.name} has a patient on both sides of its split. Mend {site.data.subset}."
        )
    return data


def harmonised(data: SiteData, tables: bytes) -> SiteData:
    """Return `data` with grey levels replaced on both sides.

    Args:
        data: Images as they are.
        tables: 256 values for each channel, one after another.
    """
    own = np.frombuffer(tables, dtype=np.uint8).reshape(-1, 256)
    unlabelled = data.unlabelled
    return SiteData(
        train=replace(data.train, tables=own),
        test=replace(data.test, tables=own),
        unlabelled=None if unlabelled is None else replace(unlabelled, tables=own),
    )


def check_population(data: SiteData, study: StudyConfig, site: SiteConfig) -> None:
    """Refuse a batch that is larger than the site's training population.

    Raises:
        DataError: With the site's private count: for the site's own log only.
    """
    if not study.privacy.at_sites:
        # Where labels are scarce a step takes all that there are.
        num_images = len(data.train) + data.num_unlabelled
        if study.training.batch_size > num_images:
            raise DataError(
                f"training.batch_size = {study.training.batch_size} is larger than site "
                f"{site.name} with {num_images} training images. Lower it, or leave the "
                "site out (simulation.partition.min_patients)."
            )
        return
    patients = data.train.patients
    if study.semi_supervised.method != "none" and data.unlabelled is not None:
        patients += data.unlabelled.patients
    units = len(set(patients) if study.privacy.unit == "patient" else patients)
    public = site.data.public_num_patients
    batch = study.privacy.sample_rate * public if public else study.privacy.expected_batch_size
    if batch > units:
        raise DataError(
            f"The expected batch of {batch:g} {study.privacy.unit}s is larger than site "
            f"{site.name} with {units}. Lower privacy.expected_batch_size, or the site's "
            "public_num_patients."
        )


def _check_store(store: Store, study: StudyConfig) -> None:
    task = study.task
    if (store.task, store.classes, store.mode) != (task.type, task.label_names, task.mode):
        raise DataError(
            f"Expected a store for {task.mode} {task.type} of {', '.join(task.label_names)}, got "
            f"{store.mode} {store.task} of {', '.join(store.classes)}. "
            "Prepare the data for this study."
        )
    expected, got = image_shape(study.data), store.images_NCHW.shape[1:]
    fits = len(got) == len(expected) and all(
        want in (-1, have) for want, have in zip(expected, got, strict=True)
    )
    if not fits or store.views != study.data.views:
        raise DataError(
            f"Expected images of shape {expected}, got {got}. Prepare the data for this study's "
            "[data] section."
        )
    for column in study.data.tabular:
        if column not in store.columns:
            raise DataError(
                f'Expected a metadata column "{column}" (data.tabular), got none of that name. '
                f"There are: {', '.join(sorted(store.columns)) or 'none'}."
            )


def read_subset(path: Path, stores: tuple[Store, ...]) -> dict[str, list[tuple[int, int]]]:
    """Return (store, row) of the images on each side of a subset file.

    Raises:
        DataError: The file cannot be read, or names what the stores have not.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {
            side: [(number, int(row)) for number, rows in enumerate(table[side]) for row in rows]
            for side in ("train", "test", "unlabelled")
            if (side in table or side != "unlabelled") and _rows_exist(table[side], stores)
        }
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a subset file of {len(stores)} store(s): {error}. "
            'Expected {"train": [[row, ...] for each store], "test": ...}, and "unlabelled" for '
            "training images whose labels are not known."
        ) from None


def _rows_exist(rows: list[list[int]], stores: tuple[Store, ...]) -> bool:
    if len(rows) != len(stores):
        raise ValueError(f"names {len(rows)} stores")
    for chosen, store in zip(rows, stores, strict=True):
        if any(not 0 <= row < len(store) for row in chosen):
            raise ValueError(f"names a row outside 0..{len(store) - 1}")
    return True


def _split_by_patient(
    stores: tuple[Store, ...], test_fraction: float
) -> dict[str, list[tuple[int, int]]]:
    """The official split where there is one, else by a hash of the pseudonym."""
    sides: dict[str, list[tuple[int, int]]] = {"train": [], "test": []}
    for number, store in enumerate(stores):
        for row in range(len(store)):
            side = store.splits[row]
            if not side:
                digest = hashlib.sha256(b"medfed split " + store.patients[row].encode()).digest()
                held_out = int.from_bytes(digest[:8], "big") < test_fraction * 2**64
                side = "test" if held_out else "train"
            sides[side].append((number, row))
    return sides


def _image_set(stores: tuple[Store, ...], rows: list[tuple[int, int]]) -> ImageSet:
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return ImageSet(stores, np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]))
