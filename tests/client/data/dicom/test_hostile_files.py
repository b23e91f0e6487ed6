"""Files that promise far too much, or change meanwhile: refused before memory is taken."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

sys.path.insert(0, str(Path(__file__).parent))

from slices import slice_dataset, write_slice

from medfed.client.data.archive.inventory import Unusable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.looking import look_at
from medfed.client.data.dicom import decoding
from medfed.client.data.dicom.decoding import read_pixels
from medfed.client.data.dicom.display import read_image
from medfed.client.data.dicom.header_facts import SliceFacts
from medfed.common.errors import UnreadableImageError

LIMITS = ReadLimits()
SMALL = np.zeros((4, 6), np.uint16)


def refused(path: Path, why: str, limits: ReadLimits = LIMITS) -> None:
    facts = look_at(str(path), limits)
    assert isinstance(facts, Unusable)
    assert why in facts.reason
    assert str(path) in facts.reason
    with pytest.raises(UnreadableImageError, match=why):
        read_image(path, "auto", limits)


def write_encoded(path: Path, frame: bytes, syntax: str, **elements: object) -> Path:
    dataset = slice_dataset(SMALL, **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_absurd_size_is_refused(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", SMALL, Rows=60000, Columns=60000)
    refused(path, "Expected at most 512 million pixel values, got 3,600 million")


def test_absurd_number_of_frames_is_refused(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", SMALL, NumberOfFrames=2_000_000)
    refused(path, "Expected at most 20,000 frames, got 2,000,000")


def test_more_pixels_than_bytes_is_refused(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", SMALL, Rows=5000)
    facts = look_at(str(path), LIMITS)
    assert isinstance(facts, Unusable)
    assert facts.what == "cut off"
    with pytest.raises(UnreadableImageError, match="Expected 60,000 bytes of pixels, got 48"):
        read_image(path, "auto", LIMITS)


def test_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", np.zeros((200, 200), np.uint16))
    refused(path, "Expected a file of at most 0.05 MB", ReadLimits(max_file_mb=0.05))


def test_codestream_larger_than_its_header_says_is_refused(tmp_path: Path) -> None:
    sides = (60000, 60000, 0, 0)
    siz = struct.pack(">HH8IH3B", 41, 0, *sides, *sides, 1, 15, 1, 1)
    frame = b"\xff\x4f\xff\x51" + siz + b"\0" * 64
    path = write_encoded(tmp_path / "a.dcm", frame, JPEG2000Lossless)
    with pytest.raises(UnreadableImageError, match="frame 1 holds one of 60000 x 60000"):
        read_pixels(path, LIMITS)


def test_jpeg_larger_than_its_header_says_is_refused(tmp_path: Path) -> None:
    sof = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65000, 65000, 1) + b"\1\x11\0"
    path = write_encoded(tmp_path / "a.dcm", sof + b"\0" * 64, JPEGBaseline8Bit)
    with pytest.raises(UnreadableImageError, match="frame 1 holds one of 65000 x 65000"):
        read_pixels(path, LIMITS)


def test_encoded_pixels_that_expand_too_far_are_refused(tmp_path: Path) -> None:
    path = write_encoded(
        tmp_path / "a.dcm", b"\xff\xd8" + b"\0" * 100, JPEGBaseline8Bit, Rows=20000, Columns=20000
    )
    refused(path, "at most 1000 times their encoded size")


def deflated(path: Path, dataset: pydicom.FileDataset, trailing: int) -> Path:
    """The data set, followed by `trailing` zero bytes in a private element, deflated."""
    body = io.BytesIO()
    dataset.save_as(body, enforce_file_format=True)
    whole = body.getvalue()
    meta = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    write_file_meta_info(meta, dataset.file_meta)
    start = 132 + 12 + struct.unpack_from("<I", whole, 140)[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM" + meta.getvalue())
        file.write(squeeze.compress(whole[start:]))
        if trailing:
            file.write(squeeze.compress(b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", trailing)))
            zeros = bytes(1 << 20)
            for _ in range(trailing >> 20):
                file.write(squeeze.compress(zeros))
        file.write(squeeze.flush())
    return path


def test_deflated_file_is_read(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint16).reshape(4, 6)
    path = deflated(tmp_path / "a.dcm", slice_dataset(values), 0)
    assert isinstance(look_at(str(path), LIMITS), SliceFacts)
    np.testing.assert_array_equal(read_pixels(path, LIMITS).values[0], values)


def test_deflated_bomb_is_refused_within_little_memory(tmp_path: Path) -> None:
    path = deflated(tmp_path / "bomb.dcm", slice_dataset(SMALL), 300 << 20)
    assert path.stat().st_size < 1 << 20
    script = f"""
import resource
from pathlib import Path
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.looking import look_at
from medfed.client.data.dicom.decoding import read_pixels
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(look_at({str(path)!r}, ReadLimits()).reason)
try:
    read_pixels(Path({str(path)!r}), ReadLimits())
except Exception as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    first, second, kib = done.stdout.splitlines()
    assert "inflates to far more" in first
    assert "inflates to far more" in second
    # 64 MiB at a time, held twice while they are joined.
    assert int(kib) < 350 << 10


def test_deflated_file_that_is_cut_off_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 16, (64, 64)).astype(np.uint16)
    path = deflated(tmp_path / "a.dcm", slice_dataset(values), 0)
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "cut off")


def test_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slice(tmp_path / "a.dcm", SMALL)
    decode = decoding._decode

    def slow(*arguments: object) -> object:
        with path.open("ab") as file:
            file.write(b"more")
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "_decode", slow)
    with pytest.raises(UnreadableImageError, match="changed while it was read"):
        read_pixels(path, LIMITS)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
    said = {"ImagePositionPatient": [0, 0, 1.5], "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.77"}
    path = write_slice(tmp_path / "a.dcm", values, **said)
    content = bytearray(path.read_bytes())
    # The header, where damage does harm; the transfer syntax among it.
    for place in rng.integers(132, len(content) - 512, 12):
        content[place] = rng.integers(0, 256)
    path.write_bytes(content[: rng.integers(200, len(content))] if seed % 3 == 0 else content)
    facts = look_at(str(path), LIMITS)
    assert isinstance(facts, SliceFacts | Unusable)
    with contextlib.suppress(UnreadableImageError):
        assert read_image(path, "auto", LIMITS).dtype == np.uint8


def test_modality_of_no_known_representation_is_a_damaged_file(tmp_path: Path) -> None:
    said = {"SOPClassUID": "1.2.3", "Modality": "CT"}
    path = write_slice(tmp_path / "a.dcm", SMALL, **said)
    content = path.read_bytes()
    place = content.index(b"\x08\x00\x60\x00CS") + 5
    start_of_pixels = content.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[:place] + b"\xc0" + content[place + 1 : start_of_pixels])
    refused(path, "damaged")


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_open(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", SMALL, Rows=60000, Columns=60000)
    before = num_open()
    for _ in range(20):
        look_at(str(path), LIMITS)
        with pytest.raises(UnreadableImageError):
            read_pixels(path, LIMITS)
    assert num_open() == before
