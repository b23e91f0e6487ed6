"""Every DICOM file of the test data: no identity in the written bytes, pixels as they were."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medfed.client.data.deidentification.folders import FolderReport, deidentify_folder
from medfed.client.data.deidentification.profile import Option
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.values import cleaned_text

pytestmark = pytest.mark.filterwarnings("ignore")

_KEY = bytes(range(32))
_RULES = Rules(options=(Option.RETAIN_LONGITUDINAL_MODIFIED,), burnt_in="mask")
_IDENTIFYING = re.compile(
    r"(Name|Address|Telephone.*|Comments?|PatientID|OtherPatientIDs|AccessionNumber|StudyID"
    r"|History|ReasonFor.*|ReasonForStudy|InstitutionalDepartmentName|SerialNumber|Description"
    r"|BirthDate|BirthTime|AdmissionID|MedicalRecordLocator|Occupation|Location)$"
)
# Names of things: kept, as the standard says.
_THINGS = re.compile(
    r"(ManufacturerModelName|SequenceName|Coil.*|ImplementationVersionName|Pulse.*)"
)
_NAMES_OF_THINGS = ("SegmentAlgorithmName", "AlgorithmName", "TransmitCoilName", "BeamName")
_STANDARD = "1.2.840.10008."
_CHARSETS = ("utf-8", "latin-1", "iso8859-5", "iso2022_jp", "euc_kr", "gb18030", "shift_jis")
# Words of four letters and more, and numbers of five and more digits, can be told from chance.
_TELLING = re.compile(r"[^\W\d_]{4,}|\d{5,}")


def _elements(dataset: Dataset) -> Iterator[pydicom.DataElement]:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        else:
            yield element


def _values(element: pydicom.DataElement) -> Iterator[str]:
    several = isinstance(element.value, MultiValue | list)
    for value in element.value if several else [element.value]:
        yield str(value).strip(" \0")


def _identities(dataset: Dataset) -> set[str]:
    """Whole values that identify: names, ids, dates, institution, free text, UIDs of instances."""
    found = set()
    elements = list(_elements(dataset))
    # What is also a defined term ("DCMQI" as a content label) or the name of a program, a coil or
    # a beam, which Table E.1-1 leaves, tells no one's identity.
    terms = {
        value
        for element in elements
        if element.VR == "CS" or element.keyword in _NAMES_OF_THINGS
        for value in _values(element)
    }
    for element in elements:
        keyword = element.keyword
        if element.tag.is_private or _THINGS.match(keyword) or not element.value:
            continue
        named = element.VR == "PN" or (
            element.VR in ("LO", "SH", "ST", "LT", "UT") and _IDENTIFYING.search(keyword)
        )
        dated = element.VR in ("DA", "DT")
        uid = element.VR == "UI" and keyword.endswith(("InstanceUID", "FrameOfReferenceUID"))
        for value in _values(element):
            # Text in words that name no one ("US KIDNEY", "None") may stand elsewhere too.
            known = element.VR != "PN" and cleaned_text(value) == value.upper()
            telling = named and not known and _TELLING.search(value)
            instance = uid and len(value) > 12 and not value.startswith(_STANDARD)
            if telling or instance or (dated and len(value) >= 8):
                found.add(value)
    return found - terms


def _encoded(text: str) -> Iterator[bytes]:
    for charset in _CHARSETS:
        try:
            yield text.encode(charset)
        except UnicodeEncodeError:
            continue


@pytest.fixture(scope="module")
def copies(
    dicom_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FolderReport]:
    out = tmp_path_factory.mktemp("copies")
    return out, deidentify_folder(dicom_folder, out, _RULES, _KEY)


@pytest.fixture(scope="module")
def pairs(dicom_folder: Path, copies: tuple[Path, FolderReport]) -> list[tuple[Path, Path]]:
    """Source and copy of every file that was not refused, matched by what the copy is named."""
    from medfed.client.data.deidentification.file_copies import copy_name, read_source
    from medfed.common.errors import UnreadableImageError

    out, report = copies
    matched = []
    for path in sorted(dicom_folder.rglob("*")):
        if not path.is_file() or str(path.relative_to(dicom_folder)) in report.refused:
            continue
        content = path.read_bytes()
        try:
            name = copy_name(read_source(content), content, _RULES, _KEY)
        except UnreadableImageError:
            pytest.fail(f"{path} is neither refused nor read")
        matched.append((path, out / name))
    return matched


@pytest.mark.slow
def test_every_file_is_copied_or_refused_with_a_reason(
    dicom_folder: Path, copies: tuple[Path, FolderReport], pairs: list[tuple[Path, Path]]
) -> None:
    _, report = copies
    num_files = sum(1 for path in dicom_folder.rglob("*") if path.is_file())
    assert len(report.written) + len(report.present) + len(report.refused) == num_files
    assert len(report.written) >= 285
    assert all(copy.is_file() for _, copy in pairs)
    # A reason that stands for a mistake of ours would be this one.
    damaged = {path for path, why in report.refused.items() if "header is damaged" in why}
    assert damaged == set()


@pytest.mark.slow
def test_no_identity_is_left_in_the_bytes_of_any_copy(pairs: list[tuple[Path, Path]]) -> None:
    num_searched = 0
    for source, copy in pairs:
        dataset = pydicom.dcmread(source, force=True)
        content = copy.read_bytes()
        # Pixels are compared elsewhere; by chance they can hold a short string.
        head = content.split(b"\xe0\x7f\x10\x00")[0]
        for text in _identities(dataset):
            num_searched += 1
            left = [code for code in _encoded(text) if code in head]
            assert not left, f"{source.name}: {text!r} is left in {copy.name}"
        again = pydicom.dcmread(copy)
        assert not [e for e in again.iterall() if e.tag.is_private], source
        assert again.PatientIdentityRemoved == "YES"
    assert num_searched > 2000


@pytest.mark.slow
def test_pixels_are_the_same_bit_for_bit_unless_masked(
    copies: tuple[Path, FolderReport], pairs: list[tuple[Path, Path]]
) -> None:
    out, report = copies
    num_compared = 0
    for source, copy in pairs:
        name = str(copy.relative_to(out))
        if name in report.written and report.written[name].boxes:
            continue
        before, after = pydicom.dcmread(source, force=True), pydicom.dcmread(copy)
        for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            if keyword not in before:
                continue
            num_compared += 1
            old = before[keyword].value
            if old + bytes(len(old) % 2) == after[keyword].value:
                continue
            # Only comments inside compressed pixels may differ, not what is decoded.
            assert report.written[name].counts["pixel_comments_blanked"] == 1, source
            np.testing.assert_array_equal(before.pixel_array, after.pixel_array)
    assert num_compared > 200


@pytest.mark.slow
def test_uids_and_dates_stay_consistent_across_files(pairs: list[tuple[Path, Path]]) -> None:
    uids: dict[str, set[str]] = {}
    shifts: dict[str, set[int]] = {}
    for source, copy in pairs:
        before, after = pydicom.dcmread(source, force=True), pydicom.dcmread(copy)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            if before.get(keyword):
                uids.setdefault(before[keyword].value, set()).add(after[keyword].value)
        for item_before, item_after in zip(
            before.get("ReferencedSeriesSequence", ()),
            after.get("ReferencedSeriesSequence", ()),
            strict=True,
        ):
            uids.setdefault(item_before.SeriesInstanceUID, set()).add(item_after.SeriesInstanceUID)
        old, new = str(before.get("StudyDate") or ""), str(after.get("StudyDate") or "")
        if re.fullmatch(r"\d{8}", old) and new:
            days = [date(int(d[:4]), int(d[4:6]), int(d[6:])) for d in (old, new)]
            shifts.setdefault(after.PatientID, set()).add((days[1] - days[0]).days)
    assert len(uids) > 300
    assert all(len(mapped) == 1 for mapped in uids.values())
    assert len(shifts) > 10
    for shift in shifts.values():
        assert len(shift) == 1
        assert -365 <= next(iter(shift)) <= -1


@pytest.mark.slow
def test_the_same_key_gives_the_same_bytes_and_another_key_other_names(
    dicom_folder: Path, tmp_path: Path
) -> None:
    source = dicom_folder / "dicom_seg"
    trees = []
    for name, key in (("a", _KEY), ("b", _KEY), ("c", bytes(32))):
        deidentify_folder(source, tmp_path / name, _RULES, key)
        files = [path for path in (tmp_path / name).rglob("*.dcm")]
        trees.append({str(f.relative_to(tmp_path / name)): f.read_bytes() for f in files})
    assert trees[0] == trees[1]
    assert len(trees[0]) >= 5
    assert not set(trees[0]) & set(trees[2])
    patients = [{name.split("/")[0] for name in tree} for tree in trees]
    assert not patients[0] & patients[2]
