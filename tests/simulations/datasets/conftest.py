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
