"""Segmentations whose frames together exceed the pixel limit, though each is small."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

sys.path.insert(0, str(Path(__file__).parent))

from archives import KEY, join
from many_frames import SEGMENTS, SIDE, SLICES, traced, truth, write_many, write_source

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.labels.grid import read_grid
from medfed.client.data.labels.landing import segment_layers
from medfed.client.data.labels.segment_frames import read_frames
from medfed.client.data.labels.segmentations import read_segmentation

# Room for two frames, of 360.
LIMITS = ReadLimits(max_megapixels=0.4)
FRAME, FRAMES = SIDE * SIDE, SEGMENTS * SLICES
WRITTEN = [
    ("BINARY", ExplicitVRLittleEndian),
    ("FRACTIONAL", ExplicitVRLittleEndian),
    ("FRACTIONAL", RLELossless),
    ("FRACTIONAL", JPEGLSLossless),
]


def mask_of(folder: Path, limits: ReadLimits = LIMITS) -> np.ndarray:
    """As a label reader composes it."""
    (series,) = scan_folder(folder / "archive", limits).series
    grid = read_grid(series, limits)
    numbers = tuple((number, number - 1) for number in range(1, SEGMENTS + 1))
    mask = np.zeros(grid.shape, np.uint8)
    for layer in segment_layers(folder / "archive" / "seg.dcm", numbers, grid, KEY, limits):
        mask[layer.place][layer.inside] = layer.structure + 1
    return mask


def problem_of(path: Path, limits: ReadLimits = LIMITS) -> FileProblem:
    """Why it is refused: by its header, or where its frames are not what that says."""
    try:
        read_segmentation(path, limits)
        for _ in read_frames(path, limits):
            pass
    except FileProblem as problem:
        return problem
    pytest.fail("it was read")


@pytest.mark.parametrize(("kind", "syntax"), WRITTEN)
def test_frames_beyond_the_limit_together_are_read_one_by_one(
    tmp_path: Path, kind: str, syntax: UID
) -> None:
    write_source(tmp_path / "archive")
    write_many(tmp_path / "archive" / "seg.dcm", kind, syntax)
    with traced() as most:
        mask = mask_of(tmp_path)
    np.testing.assert_array_equal(mask, truth())
    # The mask (2 MB), a frame, and the 360 descriptions of the header. All frames are 61 MB.
    assert most[0] < FRAME * FRAMES / 4


def test_labels_of_many_frames_are_joined_under_small_limits(tmp_path: Path) -> None:
    write_source(tmp_path / "archive")
    write_many(tmp_path / "archive" / "seg.dcm", "BINARY")
    found = join(tmp_path, {"masks": [{}]})
    assert found.problems == ()
    reader = found.by_image["1.2.71", 3].read_mask
    assert reader is not None
    np.testing.assert_array_equal(reader(), truth()[3])


def test_one_frame_beyond_the_limit_is_refused_before_its_pixels(tmp_path: Path) -> None:
    dataset = write_many(tmp_path / "seg.dcm", "BINARY")
    dataset.Rows = dataset.Columns = 32_000
    dataset.save_as(tmp_path / "seg.dcm")
    with traced() as most:
        problem = problem_of(tmp_path / "seg.dcm", ReadLimits())
    assert "at most 512 million pixel values, got 1,024 million" in str(problem)
    assert problem.category == "refused"
    assert most[0] < 32e6


def renumber(frames: int) -> Callable[[pydicom.Dataset], None]:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.NumberOfFrames = frames
        each = list(dataset.PerFrameFunctionalGroupsSequence)
        dataset.PerFrameFunctionalGroupsSequence = (each * 2)[:frames]

    return change


def undescribed(dataset: pydicom.Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[1:]


def padded(dataset: pydicom.Dataset) -> None:
    """Each frame rounded up to whole bytes: a mistake that displaces all but the first."""
    dataset.PixelData = b"\0" * (((FRAME + 7) // 8) * FRAMES + 1 & ~1)


@pytest.mark.parametrize(
    ("kind", "syntax", "change", "reason"),
    [
        ("BINARY", ExplicitVRLittleEndian, renumber(FRAMES + 8), "the file is cut off"),
        ("BINARY", ExplicitVRLittleEndian, renumber(FRAMES - 8), "bytes of pixels for 352 frames"),
        ("BINARY", ExplicitVRLittleEndian, padded, "bytes of pixels for 360 frames"),
        ("BINARY", ExplicitVRLittleEndian, undescribed, "description of each of 360 frames"),
        ("FRACTIONAL", RLELossless, renumber(FRAMES + 8), "Expected 368 frames"),
        ("FRACTIONAL", RLELossless, renumber(FRAMES - 8), "Expected 352 frames"),
        ("FRACTIONAL", RLELossless, renumber(30_000), "at most 20,000 frames"),
    ],
)
def test_other_frames_than_the_header_says_are_refused(
    tmp_path: Path,
    kind: str,
    syntax: UID,
    change: Callable[[pydicom.Dataset], None],
    reason: str,
) -> None:
    dataset = write_many(tmp_path / "seg.dcm", kind, syntax)
    change(dataset)
    if dataset.NumberOfFrames == 30_000:
        dataset.PerFrameFunctionalGroupsSequence = []
    dataset.save_as(tmp_path / "seg.dcm")
    assert reason in str(problem_of(tmp_path / "seg.dcm"))


def test_a_frame_that_decodes_to_more_than_the_header_says_is_refused(tmp_path: Path) -> None:
    dataset = write_many(tmp_path / "seg.dcm", "FRACTIONAL", JPEGLSLossless)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=FRAMES))
    # The seventh says of itself that it is a hundred times as wide.
    start = frames[6].index(b"\xff\xf7")
    frames[6] = frames[6][: start + 7] + struct.pack(">H", SIDE * 100) + frames[6][start + 9 :]
    dataset.PixelData = encapsulate(frames)
    dataset.save_as(tmp_path / "seg.dcm")
    with traced() as most:
        problem = problem_of(tmp_path / "seg.dcm")
    assert "frame 7 holds one of 411 x 41100" in str(problem)
    assert most[0] < 16e6


def test_frames_that_expand_beyond_all_measure_are_refused(tmp_path: Path) -> None:
    dataset = write_many(tmp_path / "seg.dcm", "FRACTIONAL", JPEGLSLossless)
    dataset.Rows = dataset.Columns = 20_000
    dataset.save_as(tmp_path / "seg.dcm")
    problem = problem_of(tmp_path / "seg.dcm", ReadLimits())
    assert "times their encoded size" in str(problem)
    assert problem.what == "beyond the limits"


def test_a_file_that_is_cut_off_is_refused_by_its_header(tmp_path: Path) -> None:
    write_many(tmp_path / "seg.dcm", "BINARY")
    whole = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "seg.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileProblem, match="cut off"):
        read_segmentation(tmp_path / "seg.dcm", LIMITS)


def test_a_file_that_changes_between_two_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "seg.dcm"
    write_many(path, "BINARY")
    frames = read_frames(path, LIMITS)
    next(frames)
    with path.open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(FileProblem, match="changed while it was read"):
        list(frames)


def test_a_segmentation_deflated_as_a_whole_is_held_to_the_limit_as_a_whole(
    tmp_path: Path,
) -> None:
    write_source(tmp_path / "archive")
    write_many(tmp_path / "archive" / "seg.dcm", "BINARY", DeflatedExplicitVRLittleEndian)
    assert "at most 0.4 million" in str(problem_of(tmp_path / "archive" / "seg.dcm"))
    np.testing.assert_array_equal(mask_of(tmp_path, ReadLimits()), truth())
