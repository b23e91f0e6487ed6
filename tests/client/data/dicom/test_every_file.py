"""Every real file: right pixels or a reason, never dropped, never a crash."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.archive.inventory import Unusable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.looking import OtherFacts, look_at
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.archive.volume_files import open_volume
from medfed.client.data.dicom.display import read_image
from medfed.client.data.dicom.header_facts import SliceFacts
from medfed.client.data.dicom.volume import read_series
from medfed.common.errors import UnreadableImageError

REAL = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data")
)
LIMITS = ReadLimits()

# pydicom decoded these where index.csv was made, with a GPL decoder that is not installed here.
ONLY_WITH_LIBJPEG = {"pydicom_test_files/JPGExtended.dcm"}
MASKS = {"SEG"}


def index() -> list[dict[str, str]]:
    path = REAL / "dicom/index.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def volumes() -> list[Path]:
    folder = REAL / "nifti_quirks"
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


INDEX = index()
needs_real = pytest.mark.skipif(not INDEX, reason=f"no real data at {REAL}; set MEDFED_TEST_DATA")


@needs_real
@pytest.mark.parametrize("row", INDEX, ids=lambda row: row["path"])
def test_real_dicom_file_gives_the_pixels_of_the_index_or_a_reason(row: dict[str, str]) -> None:
    path = REAL / "dicom" / row["path"]
    facts = look_at(str(path), LIMITS)
    decoded = re.match(r"\(([\d, ]+)\)", row["decoded_by_pydicom3"])
    if decoded is None or row["path"] in ONLY_WITH_LIBJPEG:
        with pytest.raises(UnreadableImageError, match=re.escape(path.name)):
            read_image(path, "auto", LIMITS)
        # JPEG2000-embedded-sequence-delimiter has a sound header: only decoding tells.
        if "embedded-sequence" not in path.name:
            assert isinstance(facts, Unusable)
            assert path.name in facts.reason
        return
    shape = tuple(int(side) for side in decoded[1].split(",") if side.strip())
    picture = read_image(path, "auto", LIMITS)
    colour = row["photometric"] == "PALETTE COLOR"
    assert picture.dtype == np.uint8
    assert picture.shape == (*(side for side in shape), *((3,) if colour else ()))
    if row["modality"] in MASKS:
        assert isinstance(facts, Unusable)
        assert facts.category == "not_an_image"
        return
    assert isinstance(facts, SliceFacts), facts
    frames = (facts.kin.num_frames,) if facts.kin.num_frames > 1 else ()
    assert (*frames, *facts.kin.shape) == shape
    assert facts.kin.modality == row["modality"]


@pytest.mark.parametrize("path", volumes(), ids=lambda path: path.name)
def test_real_volume_gives_voxels_or_a_reason(path: Path) -> None:
    facts = look_at(str(path), LIMITS)
    if isinstance(facts, Unusable):
        assert path.name in facts.reason
        assert len(facts.reason) > len(str(path)) + 20
        return
    assert isinstance(facts, OtherFacts)
    assert open_volume(path, LIMITS).shape == facts.shape


@needs_real
@pytest.mark.parametrize("name", ["dicom", "nifti_quirks"])
def test_scan_counts_every_real_file_once(name: str) -> None:
    folder = REAL / name
    found = scan_folder(folder, LIMITS)
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [path for series in found.series for path in series.files]
    listed += [Path(one.path) for one in found.unusable]
    assert sorted(listed) == there
    assert found.num_files == len(there)
    counts = found.counts()
    kinds = ("usable_files", "not_an_image", "duplicate", "refused", "unreadable")
    assert sum(counts[kind] for kind in kinds) == len(there)
    assert all(len(one.reason) > len(one.path) + 20 for one in found.unusable)


@needs_real
def test_every_real_series_can_be_read_or_says_why_not() -> None:
    found = scan_folder(REAL / "dicom", LIMITS)
    refused = []
    for series in found.series:
        try:
            array, spacing = read_series(series, "auto", LIMITS)
        except UnreadableImageError as error:
            refused.append(str(error))
            continue
        # A palette's indices become three colours.
        colours = [3] if series.files[0].name == "examples_palette.dcm" else []
        assert sorted(side for side in array.shape if side > 1) == sorted([*series.shape, *colours])
        assert spacing is None or all(size > 0 for size in spacing)
    # The same slice in several encodings; slices that lie 20 cm apart; one damaged codestream.
    reasons = ("lie where another does", "202 mm between", "frame 1 holds one of")
    assert all(any(reason in text for reason in reasons) for text in refused), refused
    assert len(refused) <= 4
