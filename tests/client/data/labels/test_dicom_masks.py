"""DICOM SEG and RTSTRUCT end in the very axes of the image; what lies elsewhere is refused."""

import contextlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from archives import (
    AXIAL,
    CORONAL,
    KEY,
    LIMITS,
    OBLIQUE,
    REAL_DATA,
    SHAPE,
    SPACING,
    STEP,
    Directions,
    box_outline,
    bright_boxes,
    join,
    outline,
    position_of,
    write_phantom,
    write_structure_set,
)

from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.deidentification.folders import deidentify_folder
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.dicom.display import read_image
from medfed.client.data.dicom.volume import read_series
from medfed.client.data.labels.joined import LabelJoin
from medfed.client.data.labels.outlines import fill_outlines
from medfed.common.errors import UnreadableImageError

highdicom = pytest.importorskip("highdicom")
from highdicom.sr.coding import CodedConcept  # noqa: E402

CLOSED = "CLOSED_PLANAR"
NAMES = ("first", "second")
# Brightness of structures 1 and 2 in this window.
WINDOW = (1000.0, 2001.0)
LEVELS = {0: 0, 1: 128, 2: 255}


def truth_of(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    mask = np.zeros(picture.shape, np.uint8)
    for value, level in LEVELS.items():
        mask[np.abs(picture.astype(int) - level) < 5] = value
    return mask


def check_against_image(folder: Path, found: LabelJoin) -> None:
    """The mask is where the image is bright: as a volume, and file by file."""
    assert found.problems == ()
    series = scan_folder(folder / "archive", LIMITS).series[0]
    volume, _ = read_series(series, WINDOW, LIMITS)
    reader = found.by_image[series.key, -1].read_mask
    assert reader is not None
    mask = reader()
    assert mask.shape == volume.shape
    np.testing.assert_array_equal(mask, truth_of(volume))
    assert set(np.unique(mask)) == {0, 1, 2}
    for at, path in enumerate(series.files):
        plane_reader = found.by_image[series.key, at].read_mask
        assert plane_reader is not None
        plane = pickle.loads(pickle.dumps(plane_reader))()
        np.testing.assert_array_equal(plane, truth_of(read_image(path, WINDOW, LIMITS)))


def sources(folder: Path) -> list[pydicom.Dataset]:
    found = [pydicom.dcmread(path) for path in (folder / "archive").glob("*.dcm")]
    return sorted(found, key=lambda one: str(one.SOPInstanceUID))


def write_segmentation(folder: Path, kind: str = "BINARY", **options: Any) -> Path:
    """A SEG of the two structures, by highdicom."""
    boxes = bright_boxes()
    tissue = CodedConcept("85756007", "SCT", "Tissue")
    segments = [
        highdicom.seg.SegmentDescription(
            number, name, tissue, tissue, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(NAMES, start=1)
    ]
    pixels = boxes
    if kind == "FRACTIONAL":
        pixels = np.stack([boxes == 1, boxes == 2], axis=-1).astype(np.float32)
        # Below one half is outside, from there on inside.
        pixels = pixels * 0.6 + (pixels == 0) * 0.4
    said = {
        "source_images": sources(folder),
        "pixel_array": pixels,
        "segmentation_type": kind,
        "segment_descriptions": segments,
        "series_instance_uid": "1.2.80",
        "series_number": 2,
        "sop_instance_uid": "1.2.80.1",
        "instance_number": 1,
        "manufacturer": "medfed",
        "manufacturer_model_name": "test",
        "software_versions": "1",
        "device_serial_number": "1",
    } | options
    dataset = highdicom.seg.Segmentation(**said)
    path = folder / "archive" / "objects" / "seg.dcm"
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, OBLIQUE])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segmentation_lies_where_the_image_is_bright(
    tmp_path: Path, kind: str, directions: Directions
) -> None:
    write_phantom(tmp_path / "archive", directions)
    write_segmentation(tmp_path, kind)
    found = join(tmp_path, {"masks": [{"kind": "seg"}]})
    assert found.structures == NAMES
    check_against_image(tmp_path, found)


def test_segmentation_of_other_order_flipped_and_sparse_lands_on_its_slices(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    path = write_segmentation(tmp_path)
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    each = list(dataset.PerFrameFunctionalGroupsSequence)
    # highdicom leaves out empty frames; here they also come backwards, rows from the bottom up.
    assert len(each) < 2 * SHAPE[0]
    for group in each:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        position[1] += SPACING[0] * (SHAPE[1] - 1)
        group.PlanePositionSequence[0].ImagePositionPatient = position.tolist()
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, -1, 0]
    dataset.PerFrameFunctionalGroupsSequence = each[::-1]
    flipped = pixels[::-1, ::-1]
    dataset.PixelData = np.packbits(flipped.reshape(-1), bitorder="little").tobytes()
    dataset.save_as(path)
    check_against_image(tmp_path, join(tmp_path, {"masks": [{"kind": "seg"}]}))


def test_segmentation_read_by_highdicom_says_the_same(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    path = write_segmentation(tmp_path)
    theirs = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in sources(tmp_path)], combine_segments=True
    )
    found = join(tmp_path, {"masks": [{}]})
    series = scan_folder(tmp_path / "archive", LIMITS).series[0]
    ours = [found.by_image[series.key, at].read_mask() for at in range(SHAPE[0])]  # type: ignore[misc]
    np.testing.assert_array_equal(np.stack(ours), theirs)


@pytest.mark.parametrize(
    ("shift", "reason"),
    [((0, 0, STEP / 2), "0.5 slices"), ((0.25, 0, 0), "0.5 pixels"), ((0, 0, 99), "slices and")],
)
def test_segmentation_beside_its_series_is_refused(
    tmp_path: Path, shift: tuple[float, ...], reason: str
) -> None:
    write_phantom(tmp_path / "archive")
    path = write_segmentation(tmp_path)
    dataset = pydicom.dcmread(path)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        group.PlanePositionSequence[0].ImagePositionPatient = (position + shift).tolist()
    dataset.save_as(path)
    found = join(tmp_path, {"masks": [{}]})
    assert len(found.problems) == 1
    assert reason in found.problems[0].reason
    assert found.counts()["with_mask"] == 0


def test_masks_of_another_frame_of_reference_are_refused(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    path = write_segmentation(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = "1.2.78"
    dataset.save_as(path)
    write_structure_set(
        tmp_path / "archive" / "objects" / "rt.dcm",
        {"first": [(CLOSED, box_outline(2, 6, 3, 8, 1))]},
        frame_of_reference="1.2.79",
    )
    found = join(tmp_path, {"masks": [{}]})
    assert [("another" in one.reason, one.what) for one in found.problems] == [
        (True, "another frame of reference")
    ] * 2


def test_wanted_segments_are_taken_by_name_or_number(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    write_segmentation(tmp_path)
    wanted = {"tumour": "SECOND", "organ": 1}
    found = join(tmp_path, {"masks": [{"structures": wanted}]}, structures=("organ", "tumour"))
    check_against_image(tmp_path, found)
    assert found.structures == ("organ", "tumour")
    none = join(tmp_path, {"masks": [{"structures": {"spleen": "spleen"}}]})
    assert none.counts()["with_mask"] == 0
    assert "it holds 'first', 'second'" in none.unmatched_rows[0].reason


def structure_set(folder: Path, directions: Directions = AXIAL, shift: float = 0.0) -> None:
    write_structure_set(
        folder / "archive" / "objects" / "rt.dcm",
        {
            "first": [
                (CLOSED, box_outline(2, 6, 3, 8, at + shift, directions)) for at in (1, 2, 3)
            ],
            "second": [
                (CLOSED, box_outline(8, 10, 10, 14, at + shift, directions)) for at in (3, 4)
            ],
        },
    )


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, OBLIQUE])
def test_structure_set_lies_where_the_image_is_bright(
    tmp_path: Path, directions: Directions
) -> None:
    write_phantom(tmp_path / "archive", directions)
    structure_set(tmp_path, directions)
    check_against_image(tmp_path, join(tmp_path, {"masks": [{"kind": "rtstruct"}]}))


def test_outlines_between_slices_are_refused(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    structure_set(tmp_path, shift=0.5)
    found = join(tmp_path, {"masks": [{}]})
    assert [one.what for one in found.problems] == ["outline between slices"]


def test_outlines_beyond_the_series_are_left_out_and_said(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    inside = [(CLOSED, box_outline(2, 6, 3, 8, at)) for at in (1, 2, 3)]
    beyond = [(CLOSED, box_outline(2, 6, 3, 8, 7))]
    inside.append((CLOSED, box_outline(9, 15, -4, -2, 1)))
    points = [("POINT", outline([3], [4], 2))]
    write_structure_set(
        tmp_path / "archive" / "objects" / "rt.dcm", {"first": inside + beyond + points}
    )
    found = join(tmp_path, {"masks": [{}]})
    notes = " ".join(found.sources[0].notes)
    assert "1 outlines of 'first' lie beyond" in notes
    assert "1 points or open lines" in notes
    assert "1 outlines of 'first' reach out of the picture" in notes
    reader = found.by_image["1.2.71", -1].read_mask
    assert reader is not None
    assert reader().sum() == (bright_boxes() == 1).sum()


def test_structures_that_overlap_are_refused_covered_or_kept_apart(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    rois = {
        "organ": [(CLOSED, box_outline(2, 6, 3, 8, 1))],
        "tumour": [(CLOSED, box_outline(4, 5, 5, 6, 1))],
    }
    write_structure_set(tmp_path / "archive" / "objects" / "rt.dcm", rois)
    masks = [{"structures": {name: name for name in rois}}]

    def slice_1(overlap: str) -> npt.NDArray[np.uint8]:
        reader = join(tmp_path, {"masks": masks, "overlap": overlap}).by_image["1.2.71", 1]
        assert reader.read_mask is not None
        return reader.read_mask()

    with pytest.raises(UnreadableImageError, match=r"4 pixels that 'organ' and 'tumour' share"):
        slice_1("refuse")
    later, regions = slice_1("later"), slice_1("regions")
    assert [(later == value).sum() for value in (1, 2)] == [26, 4]
    assert [(regions == value).sum() for value in (1, 2, 3)] == [26, 0, 4]


def test_two_objects_of_one_structure_are_a_conflict_unless_united(tmp_path: Path) -> None:
    write_phantom(tmp_path / "archive")
    write_segmentation(tmp_path)
    structure_set(tmp_path)
    found = join(tmp_path, {"masks": [{}]})
    assert {one.subject for one in found.conflicts} == {"mask first", "mask second"}
    assert {source for one in found.conflicts for source, _ in one.said} == {
        "archive/objects/seg.dcm", "archive/objects/rt.dcm"}  # fmt: skip
    assert len(found.by_image) == 0
    check_against_image(tmp_path, join(tmp_path, {"masks": [{}], "conflicts": "any"}))


def test_masks_of_the_hospital_fit_copies_that_name_nobody(tmp_path: Path) -> None:
    write_phantom(tmp_path / "raw")
    (tmp_path / "archive").mkdir()
    write_phantom(tmp_path / "archive")
    path = write_segmentation(tmp_path)
    structure_set(tmp_path)
    objects = path.parent.rename(tmp_path / "objects")
    for one in (tmp_path / "archive").iterdir():
        one.unlink()
    (tmp_path / "archive").rmdir()
    deidentify_folder(tmp_path / "raw", tmp_path / "archive", Rules(), KEY)
    for name in ("seg", "rtstruct"):
        found = join(tmp_path, {"masks": [{"kind": name, "folder": objects.name}]})
        check_against_image(tmp_path, found)


def test_hole_keyhole_and_island_are_filled_by_the_even_odd_rule() -> None:
    def box(top: float, bottom: float, left: float, right: float) -> list[tuple[float, float]]:
        return [(top, left), (top, right), (bottom, right), (bottom, left)]

    outer, inner = box(0.5, 9.5, 0.5, 9.5), box(3.5, 6.5, 3.5, 6.5)
    island = box(4.5, 5.5, 4.5, 5.5)
    expected = np.zeros((11, 12), bool)
    expected[1:10, 1:10] = True
    expected[4:7, 4:7] = False
    nested = [np.array(one) for one in (outer, inner)]
    np.testing.assert_array_equal(fill_outlines(nested, (11, 12)), expected)
    # One outline that goes in through a channel of no width, round the hole and back.
    keyhole = np.array([*outer, outer[0], inner[0], inner[3], inner[2], inner[1], inner[0]])
    np.testing.assert_array_equal(fill_outlines([keyhole], (11, 12)), expected)
    expected[5, 5] = True
    np.testing.assert_array_equal(fill_outlines([*nested, np.array(island)], (11, 12)), expected)


def test_area_of_a_disc_is_that_of_its_outline() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    disc = np.stack([60 + 40.3 * np.sin(angle), 70 + 40.3 * np.cos(angle)], axis=-1)
    inside = fill_outlines([disc], (128, 128))
    assert abs(inside.sum() / (np.pi * 40.3**2) - 1) < 2e-3
    rows, columns = np.nonzero(inside)
    assert abs(rows.mean() - 60) < 0.05
    assert abs(columns.mean() - 70) < 0.05


def test_outline_that_leaves_the_picture_is_cut_off() -> None:
    corners = np.array([(-5.5, -5.5), (-5.5, 3.5), (2.5, 3.5), (2.5, -5.5)])
    inside = fill_outlines([corners], (6, 8))
    assert inside[:3, :4].all()
    assert inside.sum() == 12


def test_real_segmentations_read_as_highdicom_reads_them(tmp_path: Path) -> None:
    folder = REAL_DATA / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    (tmp_path / "archive").symlink_to(folder / "dicom_seg" / "24x38x3" / "image")
    mask = {"folder": str(folder / "dicom_seg" / "24x38x3" / "seg")}
    found = join(tmp_path, {"masks": [mask]})
    assert found.structures == ("Liver",)
    (series,) = scan_folder(tmp_path / "archive", LIMITS).series
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in series.files]
    theirs = highdicom.seg.segread(
        folder / "dicom_seg" / "24x38x3" / "seg" / "label.seg"
    ).get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True)
    ours = [found.by_image[series.key, at].read_mask() for at in range(3)]  # type: ignore[misc]
    assert np.stack(ours).any()
    np.testing.assert_array_equal(np.stack(ours), theirs)


def test_segmentation_of_a_multi_frame_image_lands_on_its_frames(tmp_path: Path) -> None:
    folder = REAL_DATA / "dicom" / "dicom_seg" / "24x38x3"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    (tmp_path / "archive").symlink_to(folder / "multiframe")
    (series,) = scan_folder(tmp_path / "archive", LIMITS).series
    mask = pydicom.dcmread(folder / "seg" / "label.seg")
    mask.ReferencedSeriesSequence[0].SeriesInstanceUID = series.key
    mask.FrameOfReferenceUID = pydicom.dcmread(series.files[0]).FrameOfReferenceUID
    (tmp_path / "masks").mkdir()
    mask.save_as(tmp_path / "masks" / "seg.dcm")
    found = join(tmp_path, {"masks": [{"folder": "masks"}]})
    assert found.problems == ()
    # The frames of image and mask lie at the same heights, in orders of their own.
    image = pydicom.dcmread(series.files[0])

    def heights(dataset: pydicom.Dataset) -> list[float]:
        return [float(one.PlanePositionSequence[0].ImagePositionPatient[2])
                for one in dataset.PerFrameFunctionalGroupsSequence]  # fmt: skip

    by_height = dict(zip(heights(mask), mask.pixel_array, strict=True))
    for at, height in enumerate(heights(image)):
        reader = found.by_image[series.key, at].read_mask
        assert reader is not None
        np.testing.assert_array_equal(reader(), by_height[height])


def test_position_of_slices_is_along_the_normal() -> None:
    step = position_of(1, OBLIQUE) - position_of(0, OBLIQUE)
    assert np.linalg.norm(step) == pytest.approx(STEP)
    assert step @ np.array(OBLIQUE[0]) == pytest.approx(0)


@pytest.mark.parametrize("name", ["seg.dcm", "rt.dcm"])
def test_damaged_objects_are_problems_and_never_errors(tmp_path: Path, name: str) -> None:
    write_phantom(tmp_path / "archive")
    write_segmentation(tmp_path)
    structure_set(tmp_path)
    for other in {"seg.dcm", "rt.dcm"} - {name}:
        (tmp_path / "archive" / "objects" / other).unlink()
    path = tmp_path / "archive" / "objects" / name
    sound = path.read_bytes()
    random = np.random.default_rng(7)
    used = 0
    for turn in range(60):
        damaged = bytearray(sound)
        if turn % 3 == 0:
            del damaged[int(random.integers(200, len(sound))) :]
        for at in random.integers(132, len(damaged), 1 + turn % 12):
            damaged[at] = int(random.integers(256))
        path.write_bytes(bytes(damaged))
        found = join(tmp_path, {"masks": [{}]})
        for labels in found.by_image.values():
            if labels.read_mask is not None:
                used += 1
                with contextlib.suppress(UnreadableImageError):
                    assert labels.read_mask().shape == (SHAPE[2], SHAPE[1], SHAPE[0])
    assert 0 < used < 60
