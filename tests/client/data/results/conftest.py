import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))
sys.path.insert(0, str(Path(__file__).parent))

from invented_series import NAME, SHAPE
from slices import placed, write_slice

from medfed.client.data.results.maker import Maker
from medfed.client.data.results.sources import Sources, read_sources


@pytest.fixture
def maker() -> Maker:
    return Maker("lesions", "run 12, round 40")


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """The folder of four slices, whose names tell nothing of their order."""
    for z in range(SHAPE[0]):
        said = placed((5, -7, 2.5 * z)) | {
            "FrameOfReferenceUID": "1.2.9",
            "SOPInstanceUID": f"1.2.3.4.{z}",
            "SliceThickness": "2.5",
            "PatientName": NAME,
            "PatientBirthDate": "19410207",
            "SpecificCharacterSet": "ISO_IR 100",
            "StudyDate": "20200131",
            "AccessionNumber": "A77",
        }
        values = np.full(SHAPE[1:], z, np.int16)
        write_slice(tmp_path / "series" / f"{7 * z % 4}.dcm", values, **said)
    return tmp_path / "series"


@pytest.fixture
def sources(slices: Path) -> Sources:
    return read_sources(slices)


@pytest.fixture
def radiograph(tmp_path: Path) -> Callable[..., Sources]:
    def make(**changes: Any) -> Sources:
        said = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"} | changes
        values = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24)
        return read_sources(write_slice(tmp_path / "cr.dcm", values, **said))

    return make


@pytest.fixture(scope="session")
def dicom_folder() -> Path:
    data = os.environ.get("MEDFED_TEST_DATA", Path(__file__).parents[4] / "../shared/data")
    folder = Path(data) / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    return folder
