"""Slices that do not say how thick they are have segmentations too: nothing is invented."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from invented_series import SHAPE
from typer.testing import CliRunner

from medfed.cli import app
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.labels.joining import join_labels
from medfed.client.data.labels.section import LabelSection
from medfed.client.data.results.files import write_object
from medfed.client.data.results.maker import Maker
from medfed.client.data.results.segmentation import segmentation_object
from medfed.client.data.results.sources import read_sources


def strip(folder: Path, *keywords: str, only: int | None = None, **said: object) -> Path:
    """Let slices say less; leave `only` one of them."""
    for path in folder.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        if only is not None and dataset.SOPInstanceUID != f"1.2.3.4.{only}":
            path.unlink()
            continue
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)
        for keyword, value in said.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    return folder


def lesion(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[..., 2:5, 3:7] = 1
    return mask


def made_from(folder: Path, maker: Maker, path: Path) -> pydicom.FileDataset:
    sources = read_sources(folder)
    before = [str(one) for one in sources.headers]
    write_object(segmentation_object(sources, lesion(sources.shape), ["lesion"], maker), path)
    assert [str(one) for one in sources.headers] == before
    return pydicom.dcmread(path)


def measures(read: pydicom.Dataset) -> dict[str, str]:
    [found] = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    return {element.keyword: str(element.value) for element in found}


def test_a_slice_alone_refers_to_its_image_and_has_no_place_of_its_own(
    slices: Path, maker: Maker, tmp_path: Path
) -> None:
    strip(slices, "SliceThickness", only=2)
    read = made_from(slices, maker, tmp_path / "seg.dcm")
    assert set(measures(read)) == {"PixelSpacing"}
    keywords = {element.keyword for element in read.iterall()}
    assert not keywords & {
        "FrameOfReferenceUID", "ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices",
    }  # fmt: skip
    assert "state no slice thickness" in read.ImageComments
    [frame] = read.PerFrameFunctionalGroupsSequence
    [source] = frame.DerivationImageSequence[0].SourceImageSequence
    assert source.ReferencedSOPInstanceUID == "1.2.3.4.2"
    # One pointer, one value a frame: the segment.
    assert len(read.DimensionIndexSequence) == 1
    assert frame.FrameContentSequence[0].DimensionIndexValues == 1
    np.testing.assert_array_equal(read.pixel_array, lesion(SHAPE[1:]))


def test_a_segmentation_without_place_is_read_back_onto_its_slice(
    slices: Path, maker: Maker, tmp_path: Path
) -> None:
    strip(slices, "SliceThickness", only=2)
    (tmp_path / "masks").mkdir()
    made_from(slices, maker, tmp_path / "masks" / "seg.dcm")
    limits = ReadLimits()
    section = LabelSection.model_validate({"masks": [{"folder": "masks"}]})
    found = join_labels(
        section,
        scan_folder(slices, limits),
        tmp_path,
        limits,
        pseudonym_key=bytes(32),
        archive_folders=(slices,),
    )
    assert found.problems == ()
    [labels] = [one for one in found.by_image.values() if one.read_mask is not None][:1]
    np.testing.assert_array_equal(np.squeeze(labels.read_mask()), lesion(SHAPE[1:]))


def test_the_stated_distance_of_slices_stands_in_and_is_said_to(
    slices: Path, maker: Maker, tmp_path: Path
) -> None:
    strip(slices, "SliceThickness", only=1, SpacingBetweenSlices="2.5")
    read = made_from(slices, maker, tmp_path / "seg.dcm")
    assert (float(measures(read)["SliceThickness"]), read.FrameOfReferenceUID) == (2.5, "1.2.9")
    assert "distance of slices, 2.5 mm, in its stead" in read.ImageComments


@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
def test_slices_evenly_apart_give_their_distance_and_say_so(
    slices: Path, maker: Maker, tmp_path: Path, empty: bool
) -> None:
    strip(slices, "SliceThickness", **({"SliceThickness": None} if empty else {}))
    read = made_from(slices, maker, tmp_path / "seg.dcm")
    assert float(measures(read)["SliceThickness"]) == 2.5
    assert "2.5 mm" in read.ImageComments
    assert len(read.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence) == 1


def test_slices_unevenly_apart_have_no_thickness_made_up(
    slices: Path, maker: Maker, tmp_path: Path
) -> None:
    strip(slices, "SliceThickness")
    for path in slices.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y, z * (1 + z)]
        dataset.save_as(path)
    read = made_from(slices, maker, tmp_path / "seg.dcm")
    assert "SliceThickness" not in measures(read)
    named = [
        one.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for one in read.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(named) == [f"1.2.3.4.{at}" for at in range(SHAPE[0])]


def test_images_that_say_it_keep_it_and_nothing_is_remarked(
    slices: Path, maker: Maker, tmp_path: Path
) -> None:
    strip(slices, only=0)
    read = made_from(slices, maker, tmp_path / "seg.dcm")
    assert float(measures(read)["SliceThickness"]) == 2.5
    # A slice alone has no distance from another.
    assert "SpacingBetweenSlices" not in measures(read)
    assert "ImageComments" not in read


@pytest.mark.parametrize("only", [None, 1], ids=["series", "slice"])
def test_the_command_says_what_the_object_says(
    slices: Path, tmp_path: Path, only: int | None
) -> None:
    strip(slices, "SliceThickness", only=only)
    np.save(tmp_path / "mask.npy", lesion(SHAPE if only is None else SHAPE[1:]))
    words = ["data", "result", "--kind", "seg", "--source", str(slices), "--segment", "lesion"]
    words += ["--mask", str(tmp_path / "mask.npy"), "--out", str(tmp_path / "seg.dcm")]
    said = CliRunner().invoke(app, [*words, "--model", "lesions", "--model-version", "7"])
    assert said.exit_code == 0, said.output
    expected = pydicom.dcmread(tmp_path / "seg.dcm").ImageComments
    assert expected in " ".join(said.output.split())


@pytest.mark.parametrize("keywords", [("SliceThickness",), ("SliceThickness", "Spacing")])
def test_dciodvfy_has_no_error(
    dicom_folder: Path, maker: Maker, tmp_path: Path, keywords: tuple[str, ...]
) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy; scripts/install-test-services installs it (dicom3tools)")
    gone = [one.replace("Spacing", "SpacingBetweenSlices") for one in keywords]
    for place in ("mr_series/Study1/13_HCropVolume", "wg04/REF/CT1_UNC"):
        sources = read_sources(dicom_folder / place)
        for header in sources.headers:
            for keyword in gone:
                header.pop(keyword, None)
        made = segmentation_object(sources, lesion(sources.shape), ["lesion"], maker)
        write_object(made, tmp_path / "made.dcm")
        command = ["dciodvfy", tmp_path / "made.dcm"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == [], place
