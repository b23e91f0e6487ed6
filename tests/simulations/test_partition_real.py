"""Real clinics as sites: HAM10000's `dataset` column."""

import os
from pathlib import Path

import pytest

from medfed.client.data.prepare import prepare_store
from medfed.common.study import DataSection, PartitionSection, TaskSection
from medfed.simulations.datasets.ham10000 import load_ham10000
from medfed.simulations.partition import Cohort, cohort_of, partition_patients

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = REAL_DATA / "ham10000_200x150"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    dataset = load_ham10000(folder)
    store = prepare_store(
        dataset,
        TaskSection(classes=dataset.classes),
        DataSection(image_size=16),
        parent=tmp_path_factory.mktemp("stores"),
        pseudonym_key=b"key",
        strict=True,
    )
    return cohort_of(store)


def test_real_ham10000_falls_into_its_four_clinics(cohort: Cohort) -> None:
    section = PartitionSection(method="natural", column="dataset")
    partition = partition_patients(cohort, section, seed=0)
    # 971 lesions; three have images from two clinics.
    assert {name: len(members) for name, members in partition.sites.items()} == {
        "rosendahl": 275,
        "vidir_modern": 309,
        "vidir_molemax": 276,
        "vienna_dias": 108,
    }
    assert partition.left_out == {
        "vidir_modern and vidir_molemax": "3 patient(s) with images at several sites"
    }


@pytest.mark.parametrize("method", ["iid", "dirichlet", "quantity"])
def test_real_ham10000_is_partitioned_whole(cohort: Cohort, method: str) -> None:
    section = PartitionSection.model_validate({"method": method, "num_sites": 8, "alpha": 0.3})
    partition = partition_patients(cohort, section, seed=1)
    assert sum(len(members) for members in partition.sites.values()) == 971
    images = sum(int(cohort.num_images[list(m)].sum()) for m in partition.sites.values())
    assert images == 1451
