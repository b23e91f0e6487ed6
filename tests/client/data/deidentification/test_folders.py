import json
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from medfed.client.data.deidentification.folders import deidentify_folder
from medfed.client.data.deidentification.rules import Rules
from medfed.common.errors import DataError

from .conftest import written

_RULES = Rules()


@pytest.fixture
def archive(tmp_path: Path, image: Dataset) -> Path:
    """Three slices of one patient in a folder named after her, a note and a damaged file."""
    folder = tmp_path / "archive" / "Zweistein Ottilie"
    folder.mkdir(parents=True)
    for number in range(3):
        uid = f"1.2.826.0.1.1234567.9.1.{number}"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
        (folder / f"IM{number}").write_bytes(written(image))
    (folder / "note.txt").write_text("call Mrs Zweistein")
    (folder / "cut.dcm").write_bytes(written(image)[:300])
    return folder.parent


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_folder_is_copied_under_pseudonyms_and_the_source_stays(
    archive: Path, tmp_path: Path, key: bytes
) -> None:
    before = _tree(archive)
    out = tmp_path / "out"

    report = deidentify_folder(archive, out, _RULES, key)

    assert _tree(archive) == before
    assert len(report.written) == 3
    assert set(report.refused) == {"Zweistein Ottilie/note.txt", "Zweistein Ottilie/cut.dcm"}
    assert {name.split("/")[0] for name in report.written} == {
        str(pydicom.dcmread(out / next(iter(report.written))).PatientID)
    }
    text = json.dumps(report.to_json(key))
    for trace in ("Zweistein", "Ottilie", "5551234", "1234567", "2019"):
        assert trace not in text
        assert trace not in "".join(_tree(out))


def test_folder_is_taken_up_again_without_writing_over(
    archive: Path, tmp_path: Path, key: bytes
) -> None:
    out = tmp_path / "out"
    first = deidentify_folder(archive, out, _RULES, key)
    whole = _tree(out)
    lost = next(iter(first.written))
    (out / lost).unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}

    second = deidentify_folder(archive, out, _RULES, key)

    assert list(second.written) == [lost]
    assert len(second.present) == 2
    assert _tree(out) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.parametrize("change", ["rules", "key"])
def test_folder_of_other_rules_or_another_key_is_refused(
    archive: Path, tmp_path: Path, key: bytes, change: str
) -> None:
    out = tmp_path / "out"
    deidentify_folder(archive, out, _RULES, key)
    rules = Rules(options=()) if change == "rules" else _RULES
    with pytest.raises(DataError, match="other rules or another key"):
        deidentify_folder(archive, out, rules, bytes(32) if change == "key" else key)


def test_folder_with_other_files_is_refused(archive: Path, tmp_path: Path, key: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        deidentify_folder(archive, tmp_path / "out", _RULES, key)


@pytest.mark.parametrize("out", [".", "inside", ".."])
def test_folders_within_one_another_are_refused(archive: Path, out: str, key: bytes) -> None:
    with pytest.raises(DataError, match="outside"):
        deidentify_folder(archive, archive / out, _RULES, key)
    assert not (archive / "inside").exists()


def test_links_that_leave_the_folder_are_not_followed(
    archive: Path, tmp_path: Path, image: Dataset, key: bytes
) -> None:
    image.SOPInstanceUID = "1.2.826.0.1.1234567.9.1.77"
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "secret.dcm").write_bytes(written(image))
    (archive / "link.dcm").symlink_to(outside / "secret.dcm")
    (archive / "folder").symlink_to(outside)
    report = deidentify_folder(archive, tmp_path / "out", _RULES, key)
    assert len(report.written) == 3
    assert {"folder", "link.dcm"} < report.refused.keys()


def test_file_beyond_the_limits_is_refused_unread(
    archive: Path, tmp_path: Path, key: bytes
) -> None:
    with (archive / "huge.dcm").open("wb") as file:
        file.truncate(5 << 30)
    report = deidentify_folder(archive, tmp_path / "out", _RULES, key)
    assert "limits.max_file_mb" in report.refused["huge.dcm"]
    assert len(report.written) == 3


def test_unreadable_files_are_refused_and_the_rest_goes_on(
    archive: Path, tmp_path: Path, key: bytes
) -> None:
    # A folder in place of the copy's: as good as a full disk, for root too.
    out = tmp_path / "out"
    done = deidentify_folder(archive, tmp_path / "first", _RULES, key)
    patient = next(iter(done.written)).split("/")[0]
    out.mkdir()
    (out / "deidentified.json").write_bytes((tmp_path / "first/deidentified.json").read_bytes())
    (out / patient).write_text("in the way")
    report = deidentify_folder(archive, out, _RULES, key)
    assert len(report.refused) == 5
    assert (out / patient).read_text() == "in the way"


def test_damage_at_any_byte_of_the_header_stops_no_folder(
    tmp_path: Path, image: Dataset, key: bytes
) -> None:
    # Value representations that do not exist, and all kinds of wrong lengths and identifiers.
    archive, whole = tmp_path / "archive", written(image)
    archive.mkdir()
    for place in range(132, len(whole), 3):
        damaged = whole[:place] + bytes([whole[place] ^ 0xC4]) + whole[place + 1 :]
        (archive / f"{place}.dcm").write_bytes(damaged)
    report = deidentify_folder(archive, tmp_path / "out", _RULES, key)
    counted = len(report.written) + len(report.present) + len(report.refused)
    assert counted == len(list(archive.iterdir()))
    assert any("Unknown" in why or "damaged" in why for why in report.refused.values())
    assert not any(b"Zweistein" in content for content in _tree(tmp_path / "out").values())
