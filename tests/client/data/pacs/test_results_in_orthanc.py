"""Predictions stored in a real Orthanc, and read back from it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from orthanc_server import Orthanc
from pacs_patients import NAME, STUDIES
from pydicom.dataset import Dataset

from medfed.client.data.pacs.connecting import connect
from medfed.client.data.pacs.find import find
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.retrieve import retrieve
from medfed.client.data.pacs.settings import PacsSection, Query
from medfed.client.data.results.capture import capture_object
from medfed.client.data.results.files import write_object
from medfed.client.data.results.maker import Maker
from medfed.client.data.results.reports import probability_report
from medfed.client.data.results.segmentation import segmentation_object
from medfed.client.data.results.sources import Sources, read_sources
from medfed.common.errors import DataError

MODALITY = {"seg": "SEG", "sr": "SR", "sc": "OT"}
SCORES = {"pneumonia": 0.912345678901, "none": 0.087654321}
PICTURE = np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def mask_for(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 3, shape).astype(np.uint8)


def made_of(kind: str, sources: Sources) -> Dataset:
    maker = Maker("chest", "round 7")
    if kind == "seg":
        return segmentation_object(sources, mask_for(sources.shape), ["lung", "lesion"], maker)
    if kind == "sr":
        return probability_report(sources, SCORES, maker)
    return capture_object(sources, PICTURE, maker)


@pytest.mark.parametrize(
    "way",
    ["web", *(pytest.param(way, marks=pytest.mark.slow) for way in ("get", "move"))],
)
@pytest.mark.parametrize("kind", ["seg", "sr", "sc"])
def test_a_result_is_stored_and_read_back(
    orthanc: Orthanc, settings: Callable[..., PacsSection], tmp_path: Path, kind: str, way: str
) -> None:
    pacs = settings(way)
    # The images come from the PACS too, and the object goes back to the study that they are of.
    with connect(pacs) as connection:
        images = find(connection, Query(modalities=("CT",)), Patience.of(pacs)).studies
        retrieve(connection, images, tmp_path / "images", Patience.of(pacs))
        sources = read_sources(tmp_path / "images" / STUDIES["CT"] / f"{STUDIES['CT']}.1")
        made = made_of(kind, sources)
        write_object(made, tmp_path / "made.dcm")
        assert connection.store(tmp_path / "made.dcm") == ""
        found = find(connection, Query(modalities=(MODALITY[kind],)), Patience.of(pacs)).studies
        assert [one.uid for one in found] == [STUDIES["CT"]]
        report = retrieve(connection, found, tmp_path / "back", Patience.of(pacs))
    assert report.failures == []
    [path] = (tmp_path / "back").rglob(f"{made.SOPInstanceUID}.dcm")
    read = pydicom.dcmread(path)
    assert (str(read.PatientName), read.PatientID) == (NAME, "MRN-5551234")
    # All that it refers to is in the PACS.
    there = {pydicom.dcmread(one, stop_before_pixels=True).SOPInstanceUID
             for one in orthanc.sources}  # fmt: skip
    named = {element.value for element in read.iterall()
             if element.keyword == "ReferencedSOPInstanceUID"}  # fmt: skip
    assert named
    assert named <= there
    check_content(kind, read, sources)


def check_content(kind: str, read: Dataset, sources: Sources) -> None:
    if kind == "sc":
        np.testing.assert_array_equal(read.pixel_array[:40], PICTURE)
    elif kind == "sr":
        numbers = [float(one.value) for one in read.iterall() if one.keyword == "NumericValue"]
        assert numbers == pytest.approx(list(SCORES.values()), abs=1e-12)
    else:
        at = {one.SOPInstanceUID: z for z, one in enumerate(sources.headers)}
        mask = np.zeros(sources.shape, np.uint8)
        groups = read.PerFrameFunctionalGroupsSequence
        for plane, group in zip(read.pixel_array, groups, strict=True):
            [source] = group.DerivationImageSequence[0].SourceImageSequence
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            mask[at[source.ReferencedSOPInstanceUID]][plane == 1] = number
        np.testing.assert_array_equal(mask, mask_for(sources.shape))


def test_a_segmentation_of_a_slice_without_thickness_is_stored_and_read_back(
    orthanc: Orthanc, settings: Callable[..., PacsSection], tmp_path: Path
) -> None:
    pacs = settings("web")
    with connect(pacs) as connection:
        images = find(connection, Query(modalities=("CT",)), Patience.of(pacs)).studies
        retrieve(connection, images, tmp_path / "images", Patience.of(pacs))
        folder = tmp_path / "images" / STUDIES["CT"] / f"{STUDIES['CT']}.1"
        sources = read_sources(sorted(folder.glob("*.dcm"))[0])
        for keyword in ("SliceThickness", "SpacingBetweenSlices"):
            sources.first.pop(keyword, None)
        sources.first.FrameOfReferenceUID = "1.2.9"
        made = made_of("seg", sources)
        assert "no place in space" in made.ImageComments
        write_object(made, tmp_path / "made.dcm")
        assert connection.store(tmp_path / "made.dcm") == ""
        found = find(connection, Query(modalities=("SEG",)), Patience.of(pacs)).studies
        report = retrieve(connection, found, tmp_path / "back", Patience.of(pacs))
    assert report.failures == []
    [path] = (tmp_path / "back").rglob(f"{made.SOPInstanceUID}.dcm")
    read = pydicom.dcmread(path)
    mask = np.zeros(sources.shape, np.uint8)
    for plane, group in zip(read.pixel_array, read.PerFrameFunctionalGroupsSequence, strict=True):
        [source] = group.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == sources.first.SOPInstanceUID
        mask[plane == 1] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    np.testing.assert_array_equal(mask, mask_for(sources.shape))


@pytest.mark.parametrize("way", ["web", "get"])
def test_what_is_no_dicom_is_not_sent(
    settings: Callable[..., PacsSection], tmp_path: Path, way: str
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with connect(settings(way)) as connection:
        for name in ("notes.txt", "missing.dcm"):
            with pytest.raises(DataError, match=name):
                connection.store(tmp_path / name)
