"""Turns a prepared store and a partition into fake hospitals: a folder with a `site.toml` each.

From here on a simulated site is a site like any other: the same client reads the same file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from medfed.client.data.store import Store
from medfed.common.errors import DataError
from medfed.common.files import write_atomically
from medfed.common.plugins.loading import package_of
from medfed.common.seeding import numpy_rng
from medfed.common.study import SimulationSection, StudyConfig
from medfed.simulations.partition import cohort_of, partition_patients

POOLED = "pooled"
_NO_BUDGET = 1e9


@dataclass(frozen=True)
class SiteRows:
    """A fake hospital: rows of the store on each side of its split.

    `unlabelled` are of the training side, too: what stands there has no label for the site.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    unlabelled: tuple[int, ...] = ()


@dataclass(frozen=True)
class FakeHospitals:
    """All sites by name, and what was left out and why."""

    sites: Mapping[str, SiteRows]
    left_out: Mapping[str, str]


def make_hospitals(store: Store, study: StudyConfig) -> FakeHospitals:
    """Partition the store's patients into sites and split each by patient.

    Raises:
        DataError: No site is left, or a site has no patient on one side.
    """
    simulation = _simulation(study)
    cohort = cohort_of(store)
    partition = partition_patients(cohort, simulation.partition, seed=study.study.seed)
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(store.patients):
        rows_of.setdefault(patient, []).append(row)
    sites = {}
    for name, indices in partition.sites.items():
        patients = [cohort.patients[i] for i in indices]
        labels = [int(cohort.labels[i]) for i in indices]
        held_out = _held_out(store, study, name, patients, labels, rows_of)
        sites[name] = SiteRows(
            train=tuple(r for p in patients if p not in held_out for r in rows_of[p]),
            test=tuple(r for p in patients if p in held_out for r in rows_of[p]),
        )
        if not sites[name].train or not sites[name].test:
            missing = "train on" if not sites[name].train else "test on"
            raise DataError(
                f"Site {name} with {len(patients)} patient(s) has none to {missing}. "
                + _way_out(store, rows_of, patients)
            )
    return FakeHospitals(sites, partition.left_out)


def _way_out(store: Store, rows_of: Mapping[str, Sequence[int]], patients: Sequence[str]) -> str:
    if any(store.splits[rows_of[one][0]] for one in patients):
        return (
            "The data set's own split puts all of them on one side. Partition in another way "
            "(simulation.partition.method or column), or leave these patients out of the data set."
        )
    return "Raise simulation.partition.min_patients or change evaluation.test_fraction."


def write_sites(
    folder: Path, store: Store, hospitals: Mapping[str, SiteRows], study: StudyConfig
) -> list[Path]:
    """Write a `site.toml` and its subset for every site; return their paths, by name."""
    paths = []
    for name, rows in sorted(hospitals.items()):
        site_folder = folder / name
        site_folder.mkdir(parents=True, exist_ok=True)
        subset = {"train": [list(rows.train)], "test": [list(rows.test)]}
        if rows.unlabelled:
            subset["unlabelled"] = [list(rows.unlabelled)]
        write_atomically(site_folder / "subset.json", json.dumps(subset).encode())
        table = _site_table(name, store, study)
        write_atomically(site_folder / "site.toml", tomli_w.dumps(table).encode())
        paths.append(site_folder / "site.toml")
    return paths


def pool(hospitals: Mapping[str, SiteRows]) -> SiteRows:
    """Return one site that holds what all of them hold."""
    return SiteRows(
        train=tuple(r for name in sorted(hospitals) for r in hospitals[name].train),
        test=tuple(r for name in sorted(hospitals) for r in hospitals[name].test),
        unlabelled=tuple(r for name in sorted(hospitals) for r in hospitals[name].unlabelled),
    )


def describe_sites(
    store: Store, hospitals: Mapping[str, SiteRows], study: StudyConfig
) -> dict[str, Any]:
    """Return counts of each site's sides, for the report."""
    simulation = _simulation(study)
    table: dict[str, Any] = {}
    for name, rows in sorted(hospitals.items()):
        public = simulation.public_num_patients.get(name)
        batch = study.privacy.expected_batch_size
        if public is not None:
            batch = study.privacy.sample_rate * public
        table[name] = {
            "train": _side(store, rows.train),
            "test": _side(store, rows.test),
            "unlabelled": _without_labels(store, rows.unlabelled),
            "public_num_patients": public,
            "expected_batch": batch if study.privacy.at_sites else None,
        }
    return table


def write_pooled_site(
    folder: Path, store: Store, hospitals: Mapping[str, SiteRows], study: StudyConfig
) -> Path:
    """Write the site of the pooled arm: everyone's patients, and everyone's public counts."""
    [path] = write_sites(folder, store, {POOLED: pool(hospitals)}, study)
    table = _site_table(POOLED, store, study)
    table["data"]["public_num_patients"] = _pooled_public_count(study, sorted(hospitals))
    if not study.privacy.at_sites:
        del table["data"]["public_num_patients"]
    if "annotation" in table:
        # As many labels at a visit as all sites together get.
        table["annotation"]["patients"] *= len(hospitals)
    write_atomically(path, tomli_w.dumps(table).encode())
    return path


def _pooled_public_count(study: StudyConfig, sites: Sequence[str]) -> int:
    """Public patients of all sites together: their sum, or what gives the sum of their batches."""
    stated = _simulation(study).public_num_patients
    default = study.privacy.expected_batch_size / study.privacy.sample_rate
    return max(1, round(sum(stated.get(name, default) for name in sites)))


def _simulation(study: StudyConfig) -> SimulationSection:
    if study.simulation is None:
        raise DataError(
            "Expected a [simulation] section to make fake hospitals from, got none. "
            'Add it, e.g. dataset = "phantom".'
        )
    return study.simulation


def _site_table(name: str, store: Store, study: StudyConfig) -> dict[str, Any]:
    simulation = _simulation(study)
    data: dict[str, Any] = {"stores": [str(store.folder.resolve())], "subset": "subset.json"}
    if name in simulation.public_num_patients:
        data["public_num_patients"] = simulation.public_num_patients[name]
    # Where the server adds the noise, the study's own privacy.site.max_epsilon is the budget: a
    # site, which counts without the draw's amplification, would run out long before.
    secure = study.secure_aggregation
    budget_at_sites = study.privacy.unit != "site" or secure.distributed_noise != "none"
    policy: dict[str, Any] = {
        "unit": study.privacy.unit,
        "max_epsilon": simulation.max_epsilon if budget_at_sites else _NO_BUDGET,
        "target_delta": study.privacy.target_delta,
        "max_images_per_patient": study.privacy.images_per_patient,
        "allow_seeded_noise": True,
        "release_evaluation": True,
        # Public data: rare classes count too, and figures of all arms are over the same images.
        "min_patients_per_count": 1,
    }
    plugins = study.plugins
    policy["allow_plugins"] = sorted({package_of(p) for p in (plugins.model, plugins.task) if p})
    if study.federation.algorithm == "split":
        policy["allow_activations"] = True
    if study.training.local_steps is not None:
        policy["max_steps_per_round"] = study.training.local_steps
    if study.training.local_epochs is not None:
        policy["max_epochs_per_round"] = study.training.local_epochs
    if study.task.type == "report":
        noisy = study.task.report.words_noise_multiplier is not None
        policy["release_words"] = "dp" if noisy else "threshold"
        policy["min_patients_per_word"] = study.task.report.min_patients
    if study.statistics.collect:
        noisy = study.statistics.noise_multiplier is not None
        policy["release_statistics"] = "dp" if noisy else "suppressed"
        # Public data: the study's own min_count decides.
        policy["min_statistics_count"] = 1
    table = {"name": name, "data": data, "policy": policy}
    if simulation.annotation is not None:
        table["annotation"] = simulation.annotation.model_dump(mode="json", exclude_none=True)
    return table


def _held_out(
    store: Store,
    study: StudyConfig,
    site: str,
    patients: Sequence[str],
    labels: Sequence[int],
    rows_of: Mapping[str, Sequence[int]],
) -> set[str]:
    """The site's test patients: the official split, else a share of each class, drawn by seed."""
    official = {p: store.splits[rows_of[p][0]] for p in patients}
    if any(official.values()):
        return {p for p in patients if official[p] == "test"}
    rng = numpy_rng(study.study.seed, "test split", site)
    held_out: set[str] = set()
    for label in sorted(set(labels)):
        mine = [p for p, own in zip(patients, labels, strict=True) if own == label]
        count = math.floor(study.evaluation.test_fraction * len(mine) + rng.random())
        held_out.update(mine[i] for i in rng.permutation(len(mine))[:count])
    return held_out


def _without_labels(store: Store, rows: Sequence[int]) -> dict[str, int]:
    """Count what nobody has labelled: no class of these is known."""
    return {"patients": len({store.patients[row] for row in rows}), "images": len(rows)}


def _side(store: Store, rows: Sequence[int]) -> dict[str, Any]:
    if store.one_label:
        counts = np.bincount(store.labels[list(rows)], minlength=len(store.classes))
    else:
        counts = store.labels[list(rows)].sum(axis=0)
    return {
        "patients": len({store.patients[row] for row in rows}),
        "images": len(rows),
        "labels": [int(count) for count in counts],
    }
