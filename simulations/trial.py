"""Hospitals to rehearse a deployment with: each site of a simulated study in a folder of its own.

A folder holds what a hospital has: a prepared store with its own patients alone, and a `site.toml`.
Deployed over a real network, with seeded noise, such sites end in the very weights of the
simulation; a rehearsal before real data is pointed at.
"""

import json
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from medfed.client.data.store import copy_rows, open_store
from medfed.client.site import load_site
from medfed.common.errors import DataError
from medfed.common.files import read_json, write_atomically
from medfed.common.study import StudyConfig
from medfed.simulations.study import Options, prepare_run, start_study


def write_trial_sites(
    study: StudyConfig, data: Path | None, into: Path, *, seeded_noise: bool
) -> list[Path]:
    """Write a folder for every site of the study's simulation; return their `site.toml`.

    Args:
        study: With a [simulation] section.
        data: The data set's folder or file; None for the embedded one.
        into: Gets one folder a site.
        seeded_noise: Let the sites' policies allow noise from the study's seed: bit-identical to
            the simulation, and not private.

    Raises:
        DataError: A folder is there already, or the data cannot be used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "trial"
        start_study(study, run, data, Options())
        prepare_run(run)
        sources = sorted((run / "arms" / "federated" / "sites").glob("*/site.toml"))
        for source in sources:
            if (into / source.parent.name).exists():
                raise DataError(
                    f"{into / source.parent.name} exists already. Name another folder with --out."
                )
        return [_copy(source, into / source.parent.name, seeded_noise) for source in sources]


def _copy(source: Path, folder: Path, seeded_noise: bool) -> Path:
    site = load_site(source)
    [store] = [open_store(site.path(path)) for path in site.data.stores]
    subset = read_json(source.parent / site.data.subset)
    sides: dict[str, Sequence[int]] = {side: rows[0] for side, rows in subset.items()}
    rows = sorted({row for side in sides.values() for row in side})
    folder.mkdir(parents=True)
    copy_rows(store, rows, folder / "store")
    # In the order of the simulation: sums of floats depend on it.
    place = {row: number for number, row in enumerate(rows)}
    own = {name: [[place[row] for row in side]] for name, side in sides.items()}
    write_atomically(folder / "subset.json", json.dumps(own).encode())
    write_atomically(folder / "site.toml", tomli_w.dumps(_table(source, seeded_noise)).encode())
    return folder / "site.toml"


def _table(source: Path, seeded_noise: bool) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
    table["data"]["stores"] = ["store"]
    table["policy"]["allow_seeded_noise"] = seeded_noise
    return table
