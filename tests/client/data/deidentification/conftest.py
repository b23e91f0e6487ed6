import io
import os
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data")
)


@pytest.fixture(scope="session")
def dicom_folder() -> Path:
    folder = _DATA / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not _DATA.is_dir():
        pytest.skip(f"no real data at {_DATA}; set MEDFED_TEST_DATA")
    return _DATA


@pytest.fixture
def key() -> bytes:
    return bytes(range(32))


@pytest.fixture
def image() -> Dataset:
    """One CT slice of an invented patient, without pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.1234567.9.1"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.1234567.9.1"
    dataset.StudyInstanceUID = "1.2.826.0.1.1234567.9.2"
    dataset.SeriesInstanceUID = "1.2.826.0.1.1234567.9.3"
    dataset.PatientName = "Zweistein^Ottilie"
    dataset.PatientID = "MRN-5551234"
    dataset.PatientBirthDate = "19410207"
    dataset.StudyDate = "20190312"
    dataset.StudyTime = "081516"
    dataset.Modality = "CT"
    dataset.Manufacturer = "ACME"
    dataset.SliceThickness = "2.5"
    return dataset


def written(dataset: Dataset) -> bytes:
    """The bytes of `dataset` as a file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
