"""Sites that train on poisoned data: wrong labels, or a trigger that stands for a class.

Their part of the store is written anew for the federated arm; what they then do is what any site
does. Held-out images stay as they are: `simulations.attack_success` puts the trigger there.

Shapes: C channels of all views, *S spatial.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.npy_files import write_npy
from medfed.client.data.store import Store
from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig
from medfed.common.study.failures import DATA_POISONS, FailuresSection
from medfed.simulations.partition.seen import changed_store, write_labels
from medfed.simulations.sites import SiteRows

# Raise this with any change that moves a pixel or a label: stores are keyed by it.
_VERSION = 1


def store_poisoned(store: Store, sites: Mapping[str, SiteRows], study: StudyConfig) -> Store:
    """Return the store as poisoned sites have it; itself if there are none.

    label_flip: every training image of such a site is called another class. Reference: Tolpegin et
    al. 2020, https://arxiv.org/abs/2007.08432. backdoor: in the images of a share of its training
    patients there is a trigger, and their label is the target. Reference: Gu et al. 2017,
    https://arxiv.org/abs/1708.06733; in federated learning: Bagdasaryan et al. 2018,
    https://arxiv.org/abs/1807.00459
    """
    assert study.simulation is not None
    failures = study.simulation.failures
    if not failures.poisoned_by(*DATA_POISONS):
        return store
    triggered = _triggered(store, sites, failures, study.study.seed)
    labels = _flipped(store, sites, failures)
    if failures.backdoor is not None:
        target = store.classes.index(failures.backdoor.target)
        labels |= {row: _with_target(store, row, target) for row in triggered}

    def change(folder: Path) -> None:
        if failures.backdoor is not None:
            size = failures.backdoor.size
            write_npy(
                folder / "images.npy", store.images_NCHW.shape, _images(store, triggered, size)
            )
        write_labels(folder, labels)

    return changed_store(store, _key(store, triggered, labels, failures), change)


def stamp(image_CS: npt.NDArray[np.uint8], size: int, extent: tuple[int, ...] | None) -> None:
    """Put the trigger into an image: the last `size` pixels of every axis are white.

    Args:
        image_CS: Written in place.
        size: Side of the square or cube.
        extent: The part of the array that is image; None if all is.
    """
    ends = extent or image_CS.shape[1:]
    corner = tuple(slice(max(0, end - size), end) for end in ends)
    image_CS[(slice(None), *corner)] = 255


def flipped_class(label: int, failures: FailuresSection, classes: tuple[str, ...]) -> int:
    """Return what a site with flipped labels calls a class."""
    if not failures.flipped:
        return (label + 1) % len(classes)
    return classes.index(failures.flipped.get(classes[label], classes[label]))


def _flipped(
    store: Store, sites: Mapping[str, SiteRows], failures: FailuresSection
) -> dict[int, list[int]]:
    return {
        row: [flipped_class(int(store.labels[row]), failures, store.classes)]
        for site in failures.poisoned_by("label_flip")
        for row in (*sites[site].train, *sites[site].unlabelled)
    }


def _triggered(
    store: Store, sites: Mapping[str, SiteRows], failures: FailuresSection, seed: int
) -> tuple[int, ...]:
    """Rows with the trigger; who has it follows from the patient alone."""
    if failures.backdoor is None:
        return ()
    share = failures.backdoor.share
    return tuple(
        row
        for site in failures.poisoned_by("backdoor")
        for row in (*sites[site].train, *sites[site].unlabelled)
        if numpy_rng(seed, "backdoor", store.patients[row]).random() < share
    )


def _with_target(store: Store, row: int, target: int) -> list[int]:
    if store.one_label:
        return [target]
    return sorted({target, *np.flatnonzero(store.labels[row]).tolist()})


def _images(store: Store, rows: tuple[int, ...], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    chosen = set(rows)
    for row, image in enumerate(store.images_NCHW):
        if row in chosen:
            stamped = np.array(image)
            extent = None if store.shapes is None else tuple(store.shapes[row].tolist())
            stamp(stamped, size, extent)
            yield stamped
        else:
            yield np.asarray(image)


def _key(
    store: Store,
    triggered: tuple[int, ...],
    labels: Mapping[int, list[int]],
    failures: FailuresSection,
) -> str:
    parts = {
        "version": _VERSION,
        "store": store.key,
        "backdoor": failures.backdoor.model_dump(mode="json") if failures.backdoor else None,
        "triggered": triggered,
        "labels": sorted(labels.items()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
