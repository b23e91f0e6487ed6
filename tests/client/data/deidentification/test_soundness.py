import io
import warnings

import pydicom
import pytest
from pydicom.dataset import Dataset

from medfed.client.data.deidentification.file_copies import (
    copy_name,
    deidentified_copy,
    read_source,
)
from medfed.client.data.deidentification.rules import Rules
from medfed.common.errors import UnreadableImageError

from .conftest import written

_RULES = Rules()
_IDENTITY = (b"Zweistein", b"MRN-5551234", b"19410207")


def copied(content: bytes, key: bytes) -> tuple[bytes, dict[str, int]]:
    dataset = read_source(content)
    copy = deidentified_copy(dataset, copy_name(dataset, content, _RULES, key), _RULES, key)
    return copy.content, copy.report.to_json()["counts"]


def changed(whole: bytes, place: int, value: int) -> bytes:
    return whole[:place] + bytes([value]) + whole[place + 1 :]


@pytest.mark.parametrize("vr_and_name", [b"`\x00CS", b"p\x00LO"])
def test_element_that_swallowed_the_name_is_cut(
    image: Dataset, key: bytes, vr_and_name: bytes
) -> None:
    whole = written(image)
    length = whole.index(b"\x08\x00" + vr_and_name) + 6
    content, counts = copied(changed(whole, length, 0x42), key)
    assert counts["damaged_cut"] == 1
    assert not any(part in content for part in _IDENTITY)
    kept = pydicom.dcmread(io.BytesIO(content))
    assert (kept.get("Modality", "CT"), kept.get("Manufacturer", "ACME")) == ("CT", "ACME")


def test_number_of_the_record_under_another_tag_is_removed(image: Dataset, key: bytes) -> None:
    whole = written(image)
    element = whole.index(b"\x10\x00\x20\x00LO") + 2
    content, counts = copied(changed(whole, element, 0x24), key)
    assert counts["damaged_removed"] == 1
    assert b"MRN-5551234" not in content


def test_numbers_that_swallowed_others_are_removed(image: Dataset, key: bytes) -> None:
    image.Rows = [64, *b"Zweistein^Ottilie"]
    content, counts = copied(written(image), key)
    assert counts["damaged_removed"] == 1
    assert "Rows" not in pydicom.dcmread(io.BytesIO(content))


def test_usual_liberties_of_scanners_are_kept(image: Dataset, key: bytes) -> None:
    image.add_new("Modality", "SH", "CT")
    image.add_new("SliceThickness", "IS", "2")
    image.add_new("SmallestImagePixelValue", "SS", -5)
    content, counts = copied(written(image), key)
    kept = pydicom.dcmread(io.BytesIO(content))
    assert (kept.Modality, kept.SliceThickness, kept.SmallestImagePixelValue) == ("CT", 2, -5)
    assert not {"damaged_removed", "damaged_cut"} & counts.keys()


@pytest.mark.parametrize("flip", [0x01, 0x04, 0x20, 0x41, 0xC4, 0xFF])
def test_no_damaged_byte_lets_the_identity_out(image: Dataset, key: bytes, flip: int) -> None:
    whole = written(image)
    num_copies = 0
    for place in range(len(whole)):
        try:
            content, _ = copied(changed(whole, place, whole[place] ^ flip), key)
        except UnreadableImageError:
            continue
        except Exception:  # its folder's loop refuses it: test_folders
            continue
        num_copies += 1
        assert not any(part in content for part in _IDENTITY), place
    assert num_copies > len(whole) / 3


def test_remarks_that_quote_the_header_reach_no_log(
    image: Dataset, key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    whole = written(image)
    length = whole.index(b"\x08\x00\x16\x00UI") + 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quoted = read_source(changed(whole, length, 0xF0)).SOPClassUID
    assert "Zweistein" in quoted
    assert not caplog.records
