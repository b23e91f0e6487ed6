import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medfed.client.data.dicom_writer import DicomHeader, write_dicom_image
from medfed.common.errors import DataError
from medfed.common.study import PhantomSection
from medfed.simulations.phantom import load_phantom, write_dicom
from medfed.simulations.phantom.findings import Modality
from medfed.simulations.phantom.identities import _FAMILY_NAMES, _GIVEN_NAMES

MODALITIES: tuple[Modality, ...] = ("xray", "ct")


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("image_size", [64, 33])  # 33 x 33 bytes need a padding byte
def test_write_dicom_round_trips_pixels_and_valid_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: Modality, image_size: int
) -> None:
    section = PhantomSection(num_patients=5, modality=modality)
    records = load_phantom(section, image_size=image_size, seed=4).records
    # Every value is checked against its VR while it is read and written.
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.RAISE)
    for record, path in zip(records, write_dicom(records, tmp_path, seed=4), strict=True):
        dataset = pydicom.dcmread(path)
        assert np.array_equal(dataset.pixel_array, record.read_image())
        assert dataset.Modality == {"xray": "CR", "ct": "CT"}[modality]
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert all(uid.is_valid for uid in uids(dataset))
        assert re.fullmatch(r"\d{3}Y", dataset.PatientAge)
        # The column is the age at the first image; birthdays pass before the later ones.
        birthdays = int(dataset.PatientAge[:3]) - int(record.columns["age"])
        assert 0 <= birthdays < int(record.columns["image_number"])
        assert dataset.PatientSex == record.columns["sex"]
        assert dataset.StationName == record.columns["scanner"]


def uids(dataset: pydicom.Dataset) -> list[pydicom.uid.UID]:
    return [element.value for element in dataset if element.VR == "UI"]


def test_write_dicom_identities_are_invented_and_one_a_patient(tmp_path: Path) -> None:
    records = load_phantom(PhantomSection(num_patients=30), image_size=16, seed=4).records
    people: dict[str, set[tuple[str, str, str]]] = {}
    instances = set()
    for record, path in zip(records, write_dicom(records, tmp_path, seed=4), strict=True):
        dataset = pydicom.dcmread(path)
        family, given = str(dataset.PatientName).split("^")
        assert family in _FAMILY_NAMES
        assert given in _GIVEN_NAMES[record.columns["sex"]]
        key = (str(dataset.PatientName), dataset.PatientID, dataset.PatientSex)
        people.setdefault(record.patient_id, set()).add(key)
        instances.add(dataset.SOPInstanceUID)
    assert len(instances) == len(records)
    assert all(len(who) == 1 for who in people.values())
    assert len({next(iter(who))[1] for who in people.values()}) == 30


def test_write_dicom_files_hold_no_label_and_records_no_name(tmp_path: Path) -> None:
    dataset = load_phantom(PhantomSection(num_patients=20), image_size=32, seed=4)
    paths = write_dicom(dataset.records, tmp_path, seed=4)
    for record, path in zip(dataset.records, paths, strict=True):
        content = path.read_bytes().lower()
        for word in (*dataset.classes, "heart", "lung", "zone"):
            assert word.encode() not in content
        name = str(pydicom.dcmread(path).PatientName)
        known = f"{record} {record.report} {record.source}"
        assert not any(part in known for part in re.split(r"\^", name))


def test_write_dicom_name_ignores_findings(tmp_path: Path) -> None:
    """The identity is the same when the same patients have other findings."""
    section = PhantomSection(num_patients=12, max_images_per_patient=1)
    alone = load_phantom(section, image_size=16, seed=4).records
    both = section.model_copy(update={"co_occurrence": 1.0})
    several = load_phantom(both, image_size=16, seed=4).records
    assert [r.labels for r in alone] != [r.labels for r in several]
    names = [
        [str(pydicom.dcmread(p).PatientName) for p in write_dicom(rs, tmp_path / f, seed=4)]
        for rs, f in ((alone, "a"), (several, "b"))
    ]
    assert names[0] == names[1]
    assert len(set(names[0])) > 6


def test_write_dicom_is_deterministic(tmp_path: Path) -> None:
    records = load_phantom(PhantomSection(num_patients=3), image_size=16, seed=4).records
    first = [p.read_bytes() for p in write_dicom(records, tmp_path / "a", seed=4)]
    assert first == [p.read_bytes() for p in write_dicom(records, tmp_path / "b", seed=4)]
    assert first != [p.read_bytes() for p in write_dicom(records, tmp_path / "c", seed=5)]


def test_write_dicom_refuses_records_that_are_not_the_phantoms(tmp_path: Path) -> None:
    record = load_phantom(PhantomSection(num_patients=1), image_size=16, seed=4).records[0]
    with pytest.raises(DataError, match="without age, image_number"):
        write_dicom([replace(record, columns={})], tmp_path, seed=4)


def test_write_dicom_image_refuses_colour(tmp_path: Path) -> None:
    header = DicomHeader(
        uid_source="x",
        patient_name="A^B",
        patient_id="1",
        birth_date=date(1960, 1, 1),
        sex="F",
        study_date=date(2020, 1, 1),
        modality="CR",
        institution="i",
        station="s",
    )
    with pytest.raises(DataError, match=r"uint8 image of shape \[H, W\]"):
        write_dicom_image(tmp_path / "x.dcm", np.zeros((4, 4, 3), np.uint8), header)
