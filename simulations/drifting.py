"""Scanners that are replaced while a study runs.

A site whose scanner is replaced has a second site.toml beside its own, `drifted.toml`, which is the
same but for its store. From the round of the change on it is asked with that one. So what a site
has depends on the round alone, however often it is asked, and its ledger and keys are the same.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tomli_w
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from medfed.client.data.npy_files import write_npy
from medfed.client.data.store import Store
from medfed.common import messages
from medfed.common.files import write_atomically
from medfed.common.messages import TRAINING
from medfed.common.seeding import derive_seed
from medfed.common.study import StudyConfig
from medfed.common.study.failures import DriftSection
from medfed.simulations.partition.seen import changed_store
from medfed.simulations.partition.shift import shift_image, site_scanners
from medfed.simulations.sites import POOLED, SiteRows

DRIFTED_FILE = "drifted.toml"

# Raise this with any change that moves a pixel: stores are keyed by it.
_VERSION = 1


class DriftingSites(ClientApp):
    """Answers as `client_app` does, with the site's new scanner from its round on.

    Args:
        client_app: The app that sites run.
        drift: Which sites, and when.
    """

    def __init__(self, client_app: ClientApp, drift: DriftSection) -> None:
        super().__init__()
        self._client_app = client_app
        self._drift = drift

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message."""
        if message.metadata.message_type not in (*TRAINING, messages.EVALUATE):
            return self._client_app(message, context)
        round_number = int(message.metadata.group_id)
        path = site_file(Path(str(context.node_config["site"])), self._drift, round_number)
        seen = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config={**context.node_config, "site": str(path)},
            state=context.state,
            run_config=context.run_config,
        )
        return self._client_app(message, seen)


def site_file(path: Path, drift: DriftSection, round_number: int) -> Path:
    """Return the site.toml, or drifted.toml, that holds in a round."""
    site, beginning = path.parent.name, drift.from_round
    # Whoever holds all data holds that of the new scanners, once all of them are there.
    first = max(beginning.values()) if site == POOLED else beginning.get(site)
    return path if first is None or round_number < first else path.with_name(DRIFTED_FILE)


def last_site_file(path: Path) -> Path:
    """Return the file of a site as it was at the end of the study."""
    drifted = path.with_name(DRIFTED_FILE)
    return drifted if drifted.exists() else path


def write_drifted_sites(
    paths: Sequence[Path], store: Store, sites: Mapping[str, SiteRows], study: StudyConfig
) -> None:
    """Write drifted.toml beside the site.toml of each site whose scanner is replaced.

    Args:
        paths: site.toml of an arm's sites.
        store: Theirs.
        sites: Rows of the store at each site.
        study: With [simulation.failures.drift], or nothing is written.
    """
    assert study.simulation is not None
    drift = study.simulation.failures.drift
    if drift is None:
        return
    drifted = store_drifted(store, sites, drift, study.study.seed)
    for path in paths:
        if path.parent.name not in (*drift.from_round, POOLED):
            continue
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        table["data"]["stores"] = [str(drifted.folder.resolve())]
        write_atomically(path.with_name(DRIFTED_FILE), tomli_w.dumps(table).encode())


def store_drifted(
    store: Store, sites: Mapping[str, SiteRows], drift: DriftSection, seed: int
) -> Store:
    """Return the store with all images of drifting sites as their new scanners take them."""
    own_seed = derive_seed(seed, "drift")
    scanners = site_scanners(sorted(sites), drift, own_seed)
    scanner_of = {
        row: scanners[name]
        for name in drift.from_round
        for row in (*sites[name].train, *sites[name].unlabelled, *sites[name].test)
    }

    def images() -> Iterator[npt.NDArray[np.uint8]]:
        for row, image in enumerate(store.images_NCHW):
            if row in scanner_of:
                yield shift_image(store, row, scanner_of[row], drift, own_seed)
            else:
                yield np.asarray(image)

    def change(folder: Path) -> None:
        write_npy(folder / "images.npy", store.images_NCHW.shape, images())

    parts = {
        "version": _VERSION,
        "store": store.key,
        "seed": own_seed,
        "drift": drift.model_dump(mode="json"),
        "names": sorted(sites),
        "rows": sorted(scanner_of),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return changed_store(store, key, change)
