"""A scan: every file once, series as they are, the same with any number of workers."""

import json
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))

from slices import placed, write_slice, write_stack

from medfed.client.data.archive import scan
from medfed.client.data.archive.inventory import Inventory
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.header_facts import SliceFacts

LIMITS = ReadLimits()
SMALL = np.zeros((4, 6), np.int16)


def check_counts(found: Inventory) -> None:
    listed = [str(path) for series in found.series for path in series.files]
    listed += [one.path for one in found.unusable]
    assert len(listed) == len(set(listed)) == found.num_files


def make_archive(folder: Path) -> Path:
    """Two patients, three studies, and all kinds of trouble."""
    write_stack(folder / "one", [0, 2, 4], SeriesInstanceUID="1.1", Manufacturer="ACME")
    write_stack(folder / "two", [0, 2], SeriesInstanceUID="1.2", StudyInstanceUID="1.9")
    write_slice(folder / "three/a", SMALL, PatientID="P2", SeriesInstanceUID="1.3", Modality="CR",
                StudyInstanceUID="1.8")  # fmt: skip
    (folder / "three/b").write_bytes((folder / "three/a").read_bytes())
    (folder / "three/cut").write_bytes((folder / "three/a").read_bytes()[:-20])
    (folder / "three/empty").touch()
    (folder / "README.txt").write_text("Nothing to see.\n")
    write_slice(folder / "sr", SMALL, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Modality="SR")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), folder / "v.nii.gz")
    return folder


def test_scan_tells_patients_studies_series_and_troubles(tmp_path: Path) -> None:
    found = scan_folder(make_archive(tmp_path), LIMITS)
    check_counts(found)
    assert found.counts() == {
        "files": 12,
        "patients": 2,
        "studies": 3,
        "series": 4,
        "images": 7,
        "usable_files": 7,
        "not_an_image": 2,
        "duplicate": 1,
        "refused": 0,
        "unreadable": 2,
    }
    troubles = {Path(one.path).name: one.what for one in found.unusable}
    assert troubles == {
        "b": "same image again",
        "cut": "cut off",
        "empty": "empty file",
        "README.txt": "text file",
        "sr": "DICOM structured report",
    }


def test_scan_with_workers_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_WORTH_A_POOL", 1)
    monkeypatch.setattr(scan, "_CHUNK", 2)
    make_archive(tmp_path)
    told: list[tuple[int, int]] = []
    one = scan_folder(tmp_path, LIMITS)
    two = scan_folder(tmp_path, LIMITS, workers=2, progress=lambda *at: told.append(at))
    assert one == two
    assert told[-1] == (12, 12)
    assert told == sorted(told)


def test_json_holds_no_identity(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2], PatientID="SECRET-ID", PatientName="Canary^Bird")
    found = scan_folder(tmp_path, LIMITS)
    text = json.dumps(found.to_json())
    assert found.series[0].patient == "SECRET-ID"
    for secret in ("SECRET", "Canary", "1.2.3"):
        assert secret not in text
    assert str(tmp_path) not in json.dumps(found.to_json(with_paths=False))


def test_mixed_series_is_split_with_a_note(tmp_path: Path) -> None:
    write_stack(tmp_path / "axial", [0, 2, 4])
    write_slice(tmp_path / "scout", SMALL, **placed((0, 0, 0), [0, 1, 0, 0, 0, -1]))
    write_slice(tmp_path / "wide", np.zeros((8, 8), np.int16), **placed((0, 0, 0)))
    found = scan_folder(tmp_path, LIMITS)
    check_counts(found)
    assert sorted(one.num_images for one in found.series) == [1, 1, 3]
    assert len({one.key for one in found.series}) == 3
    assert all(
        "3 kinds of images, which differ in size and orientation" in one.notes[0]
        for one in found.series
    )


def test_phases_of_one_series_become_stacks_of_their_own(tmp_path: Path) -> None:
    for echo in (10, 30):
        write_stack(tmp_path / str(echo), [0, 2, 4], EchoTime=echo, Modality="MR")
    found = scan_folder(tmp_path, LIMITS)
    check_counts(found)
    assert [one.num_images for one in found.series] == [3, 3]
    assert all(one.is_stack for one in found.series)
    assert "2 stacks, which differ in EchoTime" in found.series[0].notes[0]
    assert {path.parent.name for path in found.series[0].files} == {"10"}


def test_files_without_series_are_each_their_own(tmp_path: Path) -> None:
    for number in range(3):
        write_slice(tmp_path / str(number), SMALL, SeriesInstanceUID=None, PatientID=None)
    found = scan_folder(tmp_path, LIMITS)
    assert len(found.series) == 3
    # Without an id, a study is one patient.
    assert found.counts()["patients"] == 1


def test_slices_without_positions_go_by_instance_number(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        write_slice(tmp_path / f"{9 - number}", SMALL, InstanceNumber=number)
    (series,) = scan_folder(tmp_path, LIMITS).series
    assert [path.name for path in series.files] == ["8", "7", "6"]
    assert not series.is_stack
    assert "ordered by InstanceNumber" in series.notes[0]


def test_same_uid_on_images_of_different_size_is_no_copy(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", SMALL, SOPInstanceUID="1.5")
    write_slice(tmp_path / "b", np.zeros((5, 5), np.int16), SOPInstanceUID="1.5")
    found = scan_folder(tmp_path, LIMITS)
    assert not found.unusable
    assert len(found.series) == 2


def test_nifti_pair_is_one_image_of_two_files(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.img")
    found = scan_folder(tmp_path, LIMITS)
    check_counts(found)
    assert [path.name for path in found.series[0].files] == ["a.hdr", "a.img"]
    assert found.num_files == 2
    (tmp_path / "a.img").unlink()
    found = scan_folder(tmp_path, LIMITS)
    assert [one.what for one in found.unusable] == ["NIfTI header without its .img"]


def test_scanner_and_notes_are_kept_once_in_memory(tmp_path: Path) -> None:
    write_stack(tmp_path, range(20), Manufacturer="ACME", ManufacturerModelName="X 1")
    look = partial(scan.look_at_all, limits=LIMITS, issuer=False)
    facts = list(scan._facts([str(p) for p in sorted(tmp_path.iterdir())], look, 1, None))
    kins = [one.kin for one in facts if isinstance(one, SliceFacts)]
    assert len(kins) == 20
    assert len({id(kin) for kin in kins}) == 1
    assert kins[0].scanner == "ACME X 1"


def test_control_characters_of_a_header_are_not_obeyed(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", SMALL, Manufacturer="ACME\x1b[2J[bold]")
    (series,) = scan_folder(tmp_path, LIMITS).series
    assert series.scanner == "ACME\\x1b[2J[bold]"
