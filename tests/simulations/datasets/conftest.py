import os
from pathlib import Path

import pytest

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")
)


def _real(name: str) -> Path:
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def real_ham10000() -> Path:
    return _real("ham10000_200x150")


@pytest.fixture(scope="session")
def real_pneumoniamnist() -> Path:
    return _real("pneumoniamnist_28")


@pytest.fixture(scope="session")
def real_lgg() -> Path:
    return _real("lgg_mri_kaggle_3m")


@pytest.fixture(scope="session")
def real_msd() -> Path:
    return _real("msd_hippocampus")


@pytest.fixture(scope="session")
def real_chase_db1() -> Path:
    return _real("chase_db1")


@pytest.fixture(scope="session")
def real_busi() -> Path:
    return _real("busi")


@pytest.fixture(scope="session")
def real_covid_chestxray() -> Path:
    return _real("covid_chestxray")


@pytest.fixture(scope="session")
def real_iu_xray() -> Path:
    return _real("iu_xray_openi")


@pytest.fixture(scope="session")
def real_fets2022() -> Path:
    return _real("federated_site_metadata/fets2022")


@pytest.fixture(scope="session")
def real_vqa_rad() -> Path:
    return _real("vqa_rad")
