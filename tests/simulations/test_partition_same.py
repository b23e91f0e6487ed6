"""The sites of earlier versions: the same study and seed give the same patients, for ever.

Every hash here is of what commit 5cb18c0 made, where all of this was one module of four methods.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.prepare import prepare_store
from medfed.common.study import PartitionSection
from medfed.common.study_file import load_study
from medfed.simulations.datasets.catalogue import load_dataset
from medfed.simulations.partition import Cohort, Partition, cohort_of, partition_patients

STUDIES = Path(__file__).resolve().parents[2] / "studies"
REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)
FOLDERS = {
    "ham10000": "ham10000_200x150",
    "medmnist": "pneumoniamnist_28",
    "lgg": "lgg_mri_kaggle_3m",
    "msd": "msd_hippocampus",
    "chase_db1": "chase_db1",
    "busi": "busi",
    "covid_chestxray": "covid_chestxray",
}
# Of the subsets in REAL_DATA, with the pseudonyms that simulations use.
SITES = {
    "busi": "7d61ba384378a1955ae2",
    "busi_lesions": "7d61ba384378a1955ae2",
    "chase": "ecf2409f30c4102c4187",
    "covid_findings": "af99d25381ac413718e2",
    "covid_lungs": "97097fa2c79684245b29",
    "covid_notes": "f7615f817db0a5e51f1c",
    "demo": "f33deb517137f866dfcc",
    "ham10000": "3e9b7c5075cfc0960f6d",
    "ham10000_age_sex": "3e9b7c5075cfc0960f6d",
    "ham10000_lesions": "3e9b7c5075cfc0960f6d",
    "ham10000_private": "3e9b7c5075cfc0960f6d",
    "hippocampus": "fabaf1c2801530b47f18",
    "lgg": "a2aee0bb71b42a60b9fb",
    "phantom_reports": "a8f6d31b71a884bbd040",
    "pneumoniamnist": "1b0e51b76cba931247a9",
    "rehearsal": "4fee7035fc19176e6272",
    "site_level": "978c9efe5b9309cbb821",
}


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plain(partition: Partition) -> list[object]:
    sites = {name: list(members) for name, members in partition.sites.items()}
    return [sites, dict(partition.left_out)]


def test_the_four_first_methods_draw_as_they_did() -> None:
    rng = np.random.default_rng(0)
    found = {}
    for number in range(300):
        size, num_classes = int(rng.integers(40, 400)), int(rng.integers(1, 8))
        cohort = Cohort(
            patients=tuple(f"{index:06d}" for index in range(size)),
            labels=rng.integers(0, num_classes, size),
            num_images=np.ones(size, dtype=np.int64),
            columns={"c": tuple(rng.choice(["a", "B", "", "d e"], size).tolist())},
        )
        num_sites = int(rng.integers(1, 9))
        for method in ("iid", "dirichlet", "quantity", "natural"):
            section = PartitionSection(
                method=method,  # type: ignore[arg-type]
                num_sites=num_sites,
                column="c",
                alpha=float(10 ** rng.uniform(-3, 2)),
                sigma=float(10 ** rng.uniform(-2, 1)),
                min_patients=int(rng.integers(1, 5)),
            )
            partition = partition_patients(cohort, section, seed=number)
            pairs = [list(partition.sites.items()), dict(partition.left_out)]
            found[f"made {number} {method}"] = sha256(pairs)[:20]
    assert sha256(found) == "0f0571188d93e1bca5f7db61ba0e475bb57f8484847cc4d26408fba9ff69c592"


@pytest.mark.slow
@pytest.mark.parametrize("name", SITES)
def test_ready_made_study_has_the_sites_it_had(tmp_path: Path, name: str) -> None:
    study = load_study(STUDIES / f"{name}.toml")
    assert study.simulation is not None
    folder = None
    if study.simulation.dataset != "phantom":
        folder = REAL_DATA / FOLDERS[study.simulation.dataset]
        if not folder.is_dir():
            pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    store = prepare_store(
        load_dataset(study, folder),
        study.task,
        study.data,
        parent=tmp_path,
        pseudonym_key=b"medfed simulations: public data",
    )
    section = study.simulation.partition
    partition = partition_patients(cohort_of(store), section, seed=study.study.seed)
    assert sha256(plain(partition))[:20] == SITES[name]
