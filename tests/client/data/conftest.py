import os
from pathlib import Path

import pytest

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")
)


@pytest.fixture(scope="session")
def real_nifti() -> Path:
    folder = REAL_DATA / "nifti_quirks"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    return folder
