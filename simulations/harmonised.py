"""The pooled arm's images with data.harmonise: brought together before anybody trains on them.

Whoever holds all data knows which hospital each image is from, and can do exactly what the sites of
the federated arm do: a table for each, from its training images to the mean of all. From exact
histograms: nothing was released. So the pooled arm stays a ceiling.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.counting import count
from medfed.client.data.npy_files import write_npy
from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.common.harmonisation import matching_table, quantiles, reference_of
from medfed.common.study import StudyConfig
from medfed.simulations.partition.seen import changed_store
from medfed.simulations.sites import SiteRows

# Raise this with any change that moves a pixel: stores are keyed by it.
_VERSION = 1

Tables = Mapping[str, npt.NDArray[np.uint8]]


def store_harmonised(store: Store, sites: Mapping[str, SiteRows], study: StudyConfig) -> Store:
    """Return `store` with every site's images mapped by its own table; made unless it is there."""

    def change(folder: Path) -> None:
        tables = tables_of(store, sites, study)
        site_of = {
            row: name
            for name, rows in sites.items()
            for row in (*rows.train, *rows.unlabelled, *rows.test)
        }

        def images() -> Iterator[npt.NDArray[np.uint8]]:
            for row in range(len(store)):
                table = tables[site_of[row]] if row in site_of else None
                yield _images(store, [row], table).images_NCHW(np.array([0]))[0]

        write_npy(folder / "images.npy", store.images_NCHW.shape, images())

    return changed_store(store, _key(store, sites, study), change)


def tables_of(store: Store, sites: Mapping[str, SiteRows], study: StudyConfig) -> Tables:
    """Return each site's tables [C, 256] from the exact histograms of its training images."""
    histograms = {
        name: count(_images(store, rows.train), study).exact["intensities"]
        for name, rows in sorted(sites.items())
    }
    tables: dict[str, list[npt.NDArray[np.uint8]]] = {name: [] for name in histograms}
    for channel in range(study.data.total_channels):
        found = [quantiles(histogram[channel]) for histogram in histograms.values()]
        # A view that no site has stays as it is.
        known = [function for function in found if function is not None]
        reference = reference_of(known) if known else np.linspace(0.0, 256.0, 257)
        for name, histogram in histograms.items():
            tables[name].append(matching_table(histogram[channel], reference))
    return {name: np.array(own, dtype=np.uint8) for name, own in tables.items()}


def _images(
    store: Store, rows: tuple[int, ...] | list[int], tables: npt.NDArray[np.uint8] | None = None
) -> ImageSet:
    index = np.array(rows, dtype=np.int64)
    return ImageSet((store,), np.zeros(len(index), dtype=np.int64), index, tables)


def _key(store: Store, sites: Mapping[str, SiteRows], study: StudyConfig) -> str:
    parts = {
        "version": _VERSION,
        "store": store.key,
        "bins": study.statistics.bins,
        "sites": {
            name: [rows.train, rows.test, *([rows.unlabelled] if rows.unlabelled else [])]
            for name, rows in sorted(sites.items())
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
