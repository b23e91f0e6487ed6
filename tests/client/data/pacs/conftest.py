import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))
sys.path.insert(0, str(Path(__file__).parent))

from orthanc_server import PASSWORD, SKIP, Orthanc, running
from pacs_patients import tables, write_patients

from medfed.client.data.pacs.settings import PacsSection


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if SKIP:
        pytest.skip(SKIP)
    folder = tmp_path_factory.mktemp("orthanc")
    with running(folder / "server") as server:
        server.sources = write_patients(folder / "sources")
        for path in server.sources:
            server.upload(path)
        yield server


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture
def settings(orthanc: Orthanc, password_file: Path) -> Callable[..., PacsSection]:
    def make(way: str = "auto", **changes: Any) -> PacsSection:
        return PacsSection.model_validate(tables(orthanc, password_file, way) | changes)

    return make


@pytest.fixture(scope="session")
def dicom_folder() -> Path:
    data = os.environ.get("MEDFED_TEST_DATA", Path(__file__).parents[4] / "../shared/data")
    folder = Path(data) / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    return folder
