"""What results say, read back by pydicom and by programs that are not ours."""

import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from invented_series import NAME, SHAPE
from pydicom.dataset import Dataset

from medfed.client.data.results.capture import capture_object, with_strip
from medfed.client.data.results.files import read_mask, read_scores, read_text, write_object
from medfed.client.data.results.maker import UNVERIFIED, Maker
from medfed.client.data.results.reports import probability_report, text_report
from medfed.client.data.results.segmentation import segmentation_object
from medfed.client.data.results.sources import Sources, read_sources
from medfed.common.errors import DataError

Make = Callable[[Sources, Maker], Dataset]
PICTURE = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def mask_for(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[..., 2:5, 3:7] = 1
    mask[..., 4:8, 6:9] = 2
    return mask


MAKE: dict[str, Make] = {
    "seg": lambda s, m: segmentation_object(s, mask_for(s.shape), ["nodule", "Größe"], m),
    "sr": lambda s, m: probability_report(s, {"pneumonia": 0.9123, "none": 0.0877}, m),
    "text": lambda s, m: text_report(s, "Verschattung rechts.\nSonst nichts.", m),
    "sc": lambda s, m: capture_object(s, PICTURE, m),
}


def through_a_file(made: Dataset, path: Path) -> pydicom.FileDataset:
    write_object(made, path)
    return pydicom.dcmread(path)


def nodes(item: Dataset) -> list[Dataset]:
    below = [one for child in item.get("ContentSequence", []) for one in nodes(child)]
    return [item, *below]


@pytest.mark.parametrize("kind", MAKE)
def test_a_result_says_whose_it_is_and_who_made_it(
    sources: Sources, maker: Maker, tmp_path: Path, kind: str
) -> None:
    read = through_a_file(MAKE[kind](sources, maker), tmp_path / "made.dcm")
    assert str(read.PatientName) == NAME
    assert (read.PatientID, read.PatientBirthDate) == ("P1", "19410207")
    assert (read.StudyInstanceUID, read.StudyDate, read.AccessionNumber) == (
        "1.2.3", "20200131", "A77",
    )  # fmt: skip
    assert read.SeriesInstanceUID != "1.2.3.4"
    assert (read.Manufacturer, read.ManufacturerModelName) == ("medfed", "lesions")
    assert list(read.SoftwareVersions)[1] == "run 12, round 40"
    assert "nverified" in read.SeriesDescription
    assert UNVERIFIED in str(read)
    assert oct((tmp_path / "made.dcm").stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize("kind", MAKE)
def test_making_a_result_leaves_its_sources_as_they_are(
    sources: Sources, maker: Maker, kind: str
) -> None:
    before = [str(one) for one in sources.headers]
    MAKE[kind](sources, maker)
    assert [str(one) for one in sources.headers] == before


def test_a_segmentation_holds_the_mask_and_its_sources(
    sources: Sources, maker: Maker, tmp_path: Path
) -> None:
    read = through_a_file(MAKE["seg"](sources, maker), tmp_path / "seg.dcm")
    names = [one.SegmentLabel for one in read.SegmentSequence]
    assert names == ["nodule", "Größe"]
    assert {one.SegmentAlgorithmType for one in read.SegmentSequence} == {"AUTOMATIC"}
    algorithm = read.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("lesions", "run 12, round 40")
    # By hand, and not with the library that wrote it.
    heights = {float(one.ImagePositionPatient[2]): z for z, one in enumerate(sources.headers)}
    uids = [one.SOPInstanceUID for one in sources.headers]
    mask = np.zeros(SHAPE, np.uint8)
    groups = read.PerFrameFunctionalGroupsSequence
    for plane, group in zip(np.atleast_3d(read.pixel_array), groups, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        at = heights[float(group.PlanePositionSequence[0].ImagePositionPatient[2])]
        [source] = group.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == uids[at]
        mask[at][plane == 1] = number
    np.testing.assert_array_equal(mask, mask_for(SHAPE))


def test_an_empty_mask_is_a_segmentation_too(
    sources: Sources, maker: Maker, tmp_path: Path
) -> None:
    made = segmentation_object(sources, np.zeros(SHAPE, np.uint8), ["nodule"], maker)
    assert not through_a_file(made, tmp_path / "seg.dcm").pixel_array.any()


@pytest.mark.parametrize(
    ("mask", "names", "message"),
    [
        (np.zeros((4, 12, 9), np.uint8), ["a"], "shape"),
        (np.full(SHAPE, 2, np.uint8), ["a"], "values of 0 to 1"),
        (np.zeros(SHAPE, np.uint8), ["a", "a"], "different names"),
        (np.zeros(SHAPE, np.uint8), [], "different names"),
        (np.zeros(SHAPE, np.uint8), ["x" * 65], "64 letters"),
        (np.zeros(SHAPE, np.uint8), ["a\\b"], "64 letters"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    sources: Sources, maker: Maker, mask: np.ndarray, names: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        segmentation_object(sources, mask, names, maker)


def test_a_report_holds_each_probability_and_its_sources(
    sources: Sources, maker: Maker, tmp_path: Path
) -> None:
    scores = {"pneumonia": 0.912345678901, "keine Veränderung": 1e-7, "none": 1.0, "never": 0.0}
    read = through_a_file(probability_report(sources, scores, maker), tmp_path / "sr.dcm")
    assert (read.VerificationFlag, read.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    found = {}
    for item in nodes(read):
        names = [
            one.ConceptCodeSequence[0].CodeMeaning
            for one in item.get("ContentSequence", [])
            if one.ValueType == "CODE" and one.ConceptNameCodeSequence[0].CodeValue == "121071"
        ]
        for one in item.get("ContentSequence", []):
            if one.ValueType == "NUM":
                found[names[0]] = float(one.MeasuredValueSequence[0].NumericValue)
    assert found == pytest.approx(scores, abs=1e-12)
    images = {
        one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for one in nodes(read)
        if one.get("ValueType") == "IMAGE"
    }
    assert images == {one.SOPInstanceUID for one in sources.headers}


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_probability_that_is_none_is_refused(
    sources: Sources, maker: Maker, value: float
) -> None:
    with pytest.raises(DataError, match="0 to 1"):
        probability_report(sources, {"a": value}, maker)


def test_a_text_comes_back_word_for_word(sources: Sources, maker: Maker, tmp_path: Path) -> None:
    text = "Kein Pneumothorax.\r\nHerz: größenwertig ½. 肺"
    read = through_a_file(text_report(sources, text, maker), tmp_path / "sr.dcm")
    assert text in [one.TextValue for one in nodes(read) if one.get("ValueType") == "TEXT"]
    assert read.VerificationFlag == "UNVERIFIED"


@pytest.mark.parametrize("picture", [PICTURE, PICTURE[:, :, 0]], ids=["colour", "grey"])
def test_a_capture_holds_the_picture_and_a_strip(
    sources: Sources, maker: Maker, tmp_path: Path, picture: np.ndarray
) -> None:
    read = through_a_file(capture_object(sources, picture, maker), tmp_path / "sc.dcm")
    shown = read.pixel_array
    np.testing.assert_array_equal(shown[: len(picture)], picture)
    assert len(shown) > len(picture)
    assert shown[len(picture) :].max() > 100  # there is something to read
    uids = [one.ReferencedSOPInstanceUID for one in read.SourceImageSequence]
    assert uids == [one.SOPInstanceUID for one in sources.headers]


def test_a_strip_breaks_its_lines() -> None:
    narrow = with_strip(np.zeros((900, 120), np.uint8), "one two three four five six seven")
    wide = with_strip(np.zeros((900, 900), np.uint8), "one two three four five six seven")
    assert len(narrow) - 900 > 2 * (len(wide) - 900)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    "odd",
    [
        {"PatientBirthDate": "1941.02.07", "StudyTime": "7 o'clock", "PatientSex": "?"},
        {"PatientID": None, "StudyDate": None, "Modality": None},
        {
            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
            "SpecificCharacterSet": "ISO_IR 192",
        },
        {"PatientName": "A\\B", "ReferringPhysicianName": "x" * 70},
        # Begins with an empty value, as all of Japan and Korea do.
        {
            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
            "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        },
    ],
    ids=["no dates", "nothing said", "three alphabets", "two names", "escapes"],
)
@pytest.mark.filterwarnings("ignore:.*")  # the test writes what pydicom warns of
def test_odd_headers_give_results_too(
    radiograph: Callable[..., Sources], maker: Maker, tmp_path: Path, kind: str, odd: dict[str, str]
) -> None:
    sources = radiograph(**odd)
    read = through_a_file(MAKE[kind](sources, maker), tmp_path / "made.dcm")
    if "SpecificCharacterSet" in odd:
        assert str(read.PatientName) == odd["PatientName"]
    assert read.StudyInstanceUID == "1.2.3"


@pytest.mark.parametrize("kind", MAKE)
def test_an_independent_reader_takes_results_of_real_images(
    dicom_folder: Path, maker: Maker, tmp_path: Path, kind: str
) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy; scripts/install-test-services installs it (dicom3tools)")
    for place in ("mr_series/Study1/13_HCropVolume", "highdicom/dx_image.dcm", "wg04/REF/CT1_UNC",
                  "pydicom_test_files/examples_rgb_color.dcm"):  # fmt: skip
        path = tmp_path / "made.dcm"
        write_object(MAKE[kind](read_sources(dicom_folder / place), maker), path)
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
        assert errors == [], place


def test_dcmtk_reads_the_reports(sources: Sources, maker: Maker, tmp_path: Path) -> None:
    if not shutil.which("dsr2xml"):
        pytest.skip("no dsr2xml; scripts/install-test-services installs it (dcmtk)")
    for kind, expected in (("sr", "0.9123"), ("text", "Verschattung rechts.")):
        write_object(MAKE[kind](sources, maker), tmp_path / "sr.dcm")
        command = ["dsr2xml", "-Ee", tmp_path / "sr.dcm"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        assert expected in said.stdout


@pytest.mark.parametrize("text", ["[1]", '{"a": "1"}', '{"a": true}', "{", "[" * 10_000])
def test_scores_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(DataError):
        read_scores(tmp_path / "scores.json")


@pytest.mark.parametrize("name", ["mask.npy", "mask.png", "scores.json", "text.txt"])
def test_files_that_are_none_say_the_way_out(slices: Path, tmp_path: Path, name: str) -> None:
    readers = {
        "mask.npy": lambda path: read_mask(path, read_sources(slices), "slices"),
        "mask.png": lambda path: read_mask(path, read_sources(slices), "slices"),
        "scores.json": read_scores,
        "text.txt": read_text,
    }
    with pytest.raises(DataError, match=r"directory\. Mend the path\.") as caught:
        readers[name](tmp_path / name)
    assert "Errno" not in str(caught.value)
    (tmp_path / name).write_bytes(b"\x93PNG\xff none of these")
    with pytest.raises(DataError) as caught:
        readers[name](tmp_path / name)
    assert not re.search(r"pickle|Errno|codec", str(caught.value))
    assert re.search(r"again|another file", str(caught.value))


def test_sources_of_two_series_are_refused(slices: Path) -> None:
    copy = pydicom.dcmread(slices / "0.dcm")
    copy.SeriesInstanceUID = "1.2.3.5"
    copy.SOPInstanceUID = "1.2.3.5.1"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, copy)
    (slices / "more.dcm").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="found 2 series"):
        read_sources(slices)


@pytest.mark.parametrize("field", ["model", "model_version"])
@pytest.mark.parametrize("value", ["", "x" * 65, "a\\b", "a\nb"])
def test_a_name_that_dicom_cannot_hold_is_refused(field: str, value: str) -> None:
    with pytest.raises(DataError, match="64 letters"):
        Maker(**({"model": "a", "model_version": "b"} | {field: value}))
