"""PNG, JPEG, TIFF and NIfTI: pixels as shown, limits, damage."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medfed.client.data.archive.inventory import Unusable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.looking import OtherFacts, look_at
from medfed.client.data.archive.picture_files import read_picture_file
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.archive.volume_files import open_volume
from medfed.client.data.dicom.volume import read_series
from medfed.common.errors import UnreadableImageError

LIMITS = ReadLimits()
RAMP = np.linspace(0, 255, 12).reshape(3, 4).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_grey_picture_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path)
    facts = look_at(str(path), LIMITS)
    if suffix == "bmp":
        assert isinstance(facts, Unusable)
        assert "Convert it to PNG" in facts.reason
        return
    assert isinstance(facts, OtherFacts)
    assert facts.shape == (3, 4)
    np.testing.assert_array_equal(read_picture_file(path, LIMITS), RAMP)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_coloured_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 3), (255, 0, 0)).convert(mode).save(path)
    assert look_at(str(path), LIMITS)[3] == (3, 4, 3)
    np.testing.assert_array_equal(read_picture_file(path, LIMITS)[1, 1], [255, 0, 0])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_picture_is_scaled_by_the_bits_in_use(tmp_path: Path, bits: int) -> None:
    top = (1 << bits) - 1
    Image.fromarray(np.array([[0, top // 2, top]], np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture_file(tmp_path / "a.png", LIMITS)[0, ::2], [0, 255])
    facts = look_at(str(tmp_path / "a.png"), LIMITS)
    assert isinstance(facts, OtherFacts)
    assert facts.notes


def test_camera_orientation_is_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert look_at(str(tmp_path / "a.jpg"), LIMITS)[3] == (4, 3)
    shown = read_picture_file(tmp_path / "a.jpg", LIMITS)
    assert np.abs(shown.astype(int) - np.rot90(RAMP, -1)).max() < 12


def test_tiff_of_several_pages_is_named(tmp_path: Path) -> None:
    page = Image.fromarray(RAMP)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    facts = look_at(str(tmp_path / "a.tif"), LIMITS)
    assert isinstance(facts, Unusable)
    assert "one page, got 2" in facts.reason


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("side", "why"), [(60000, "beyond"), (12000, "beyond")])
def test_png_bomb_is_refused(tmp_path: Path, side: int, why: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(side, side, b"\0" * 1000))
    facts = look_at(str(path), LIMITS)
    assert isinstance(facts, Unusable)
    assert facts.category == "refused"
    assert why in facts.what
    with pytest.raises(UnreadableImageError):
        read_picture_file(path, LIMITS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_damaged_picture_is_named_when_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])
    facts = look_at(str(path), LIMITS)
    if isinstance(facts, OtherFacts):
        with pytest.raises(UnreadableImageError, match="damaged"):
            read_picture_file(path, LIMITS)
    else:
        assert isinstance(facts, Unusable)
        assert facts.what == "damaged"


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_file_that_is_no_picture_is_called_that(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="cannot identify image file"):
        read_picture_file(path, LIMITS)


def test_first_of_several_pictures_in_a_jpeg_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("L", (4, 3), grey) for grey in (200, 10))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(read_picture_file(tmp_path / "a.jpg", LIMITS), 200, atol=2)


def header(shape: tuple[int, ...], offset: int = 352) -> bytes:
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4))
    image.header.set_data_shape(shape)
    raw = bytearray(image.header.binaryblock)
    struct.pack_into("<f", raw, 108, offset)
    raw[344:348] = b"n+1\0"
    return bytes(raw) + bytes(4)


def test_nifti_of_absurd_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(header((30000, 30000, 3)) + bytes(100))
    facts = look_at(str(path), LIMITS)
    assert isinstance(facts, Unusable)
    assert "2,700 million" in facts.reason
    with pytest.raises(UnreadableImageError, match="2,700 million"):
        open_volume(path, LIMITS)


def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header((400, 400, 400)) + bytes(128_000_000)))
    assert path.stat().st_size < 200_000
    strict = ReadLimits(max_expansion=100)
    facts = look_at(str(path), strict)
    assert isinstance(facts, Unusable)
    assert "at most 100 times their encoded size" in facts.reason
    with pytest.raises(UnreadableImageError, match="encoded size"):
        open_volume(path, strict)


def test_nifti_with_a_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header((3, 4, 5), offset=1 << 30) + bytes(1000)))
    facts = look_at(str(path), LIMITS)
    assert isinstance(facts, Unusable)
    assert "within the first" in facts.reason


def test_nifti_that_is_cut_off_is_named(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 99, (9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "b.nii.gz")
    for name in ("a.nii", "b.nii.gz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UnreadableImageError, match=name if name == "b.nii.gz" else "cut off"):
            open_volume(path, LIMITS)
    facts = look_at(str(tmp_path / "a.nii"), LIMITS)
    assert isinstance(facts, Unusable)
    assert facts.what == "cut off"


def test_series_of_other_kinds_are_read(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    volume = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(volume, np.diag([-2.0, 1, 1, 1])), tmp_path / "b.nii")
    picture, nifti = sorted(scan_folder(tmp_path, LIMITS).series, key=lambda one: one.kind)[::-1]
    np.testing.assert_array_equal(read_series(picture, "auto", LIMITS)[0], RAMP)
    array, spacing = read_series(nifti, (30, 61), LIMITS)
    assert spacing == (2, 1, 1)
    assert array[2, 0, 0] < array[0, 0, 0]
