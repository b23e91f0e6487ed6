import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.metaimage import read_block, read_header

sys.path.insert(0, str(Path(__file__).parent))

from layouts_radiology import write_metaimage

SHAPE_ZYX = (4, 5, 6)


def _ramp() -> npt.NDArray[np.int16]:
    return np.arange(np.prod(SHAPE_ZYX), dtype=np.int16).reshape(SHAPE_ZYX)


def _write(folder: Path, **options: object) -> Path:
    path = folder / "scan.mhd"
    write_metaimage(path, _ramp(), **options)  # type: ignore[arg-type]
    return path


def _edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def _whole(path: Path) -> npt.NDArray[np.float32]:
    image = read_header(path)
    return read_block(image, (0, 0, 0), image.shape, -1.0)


def test_read_header_says_where_voxels_are(tmp_path: Path) -> None:
    path = _write(tmp_path, spacing=(0.5, 1.0, 2.5), origin=(-10, 20, -30), signs=(1, -1, 1))
    image = read_header(path)
    assert image.shape == (6, 5, 4)
    assert image.spacing_mm == (0.5, 1.0, 2.5)
    # x = -10 + 0.5 i, y = 20 - j, z = -30 + 2.5 k
    assert image.voxel_at((-9, 18, -25)) == (2, 2, 2)
    assert image.voxel_at((-8.6, 18.4, -23.8)) == (3, 2, 2)


def test_read_block_turns_to_right_anterior_superior(tmp_path: Path) -> None:
    # The file's x and y run to the left and posterior.
    expected = _ramp().transpose(2, 1, 0)[::-1, ::-1]
    np.testing.assert_array_equal(_whole(_write(tmp_path)), expected)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, -1), (-1, 1, -1)])
def test_read_block_does_not_depend_on_how_the_file_is_turned(
    tmp_path: Path, signs: tuple[int, int, int]
) -> None:
    """LUNA16 has scans with TransformMatrix -1 0 0 0 -1 0 0 0 1: the same place, stored turned."""
    before = _whole(_write(tmp_path / "a"))
    stored = _ramp()[tuple(slice(None, None, sign) for sign in signs[::-1])]
    # The first voxel stored is then the last one along each turned axis.
    lengths = SHAPE_ZYX[::-1]
    origin = [side - 1 if sign < 0 else 0 for side, sign in zip(lengths, signs, strict=True)]
    path = tmp_path / "b" / "scan.mhd"
    write_metaimage(path, stored, signs=signs, origin=origin)
    np.testing.assert_array_equal(_whole(path), before)
    place = (4.2, 1.0, 2.9)
    index = read_header(path).voxel_at(place)
    assert stored[index[::-1]] == _ramp()[3, 1, 4]


def test_read_block_fills_what_lies_outside(tmp_path: Path) -> None:
    image = read_header(_write(tmp_path))
    block = read_block(image, (-2, 3, 2), (3, 7, 5), -9.0)
    assert block.shape == (5, 4, 3)
    wide = np.full((12, 12, 12), -9, dtype=np.float32)
    wide[3:9, 3:8, 3:7] = _ramp().transpose(2, 1, 0)
    np.testing.assert_array_equal(block, wide[1:6, 6:10, 5:8][::-1, ::-1])
    assert (read_block(image, (9, 9, 9), (11, 11, 11), -9.0) == -9).all()


def test_read_block_reads_packed_voxels_and_other_types(tmp_path: Path) -> None:
    path = _edit(_write(tmp_path), "CompressedData = False", "CompressedData = True")
    _edit(_edit(path, "scan.raw", "scan.zraw"), "MET_SHORT", "MET_DOUBLE")
    _edit(path, "BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True")
    (tmp_path / "scan.zraw").write_bytes(zlib.compress((_ramp() / 4).astype(">f8").tobytes()))
    expected = (_ramp() / 4).transpose(2, 1, 0)[::-1, ::-1]
    np.testing.assert_array_equal(_whole(path), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NDims = 3", "NDims = 2", "NDims = 2 where 3"),
        ("DimSize = 6 5 4", "DimSize = 6 5", "expected 3 numbers"),
        ("DimSize = 6 5 4", "DimSize = 6 5 4.5", "DimSize"),
        ("DimSize = 6 5 4", "DimSize = 99999 99999 99999", "DimSize"),
        ("DimSize = 6 5 4", "DimSize = 0 5 4", "DimSize"),
        ("DimSize", "Size", "no DimSize"),
        ("MET_SHORT", "MET_STRING", "MET_STRING"),
        ("ElementSpacing = 1.0", "ElementSpacing = 0", "ElementSpacing"),
        ("ElementSpacing = 1.0", "ElementSpacing = nan", "ElementSpacing"),
        ("Matrix = 1 0 0 0", "Matrix = 0.9 0.1 0 0", "axes that are not the patient's"),
        ("Matrix = 1 0 0 0", "Matrix = 0 0 0 0", "axes that are not the patient's"),
        ("scan.raw", "../scan.raw", "a file beside it"),
        ("scan.raw", "LOCAL", "a file beside it"),
        ("scan.raw", "/etc/passwd", "a file beside it"),
        ("NDims = 3", "NDims = 3\nNDims = 3", "NDims"),
        ("NDims = 3", "NDims", "'NDims'"),
    ],
)
def test_read_header_refuses_other_headers(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = _edit(_write(tmp_path), old, new)
    with pytest.raises(UnreadableImageError, match=message) as caught:
        read_header(path)
    assert "scan.mhd" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"ObjectType = Image\n" * 10_000])
def test_read_header_refuses_what_is_no_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.mhd"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"scan\.mhd"):
        read_header(path)


def test_read_block_refuses_voxels_of_another_size(tmp_path: Path) -> None:
    path = _write(tmp_path)
    raw = tmp_path / "scan.raw"
    raw.write_bytes(raw.read_bytes() + b"\0")
    with pytest.raises(UnreadableImageError, match=r"scan\.raw .*241 bytes .* 240"):
        _whole(path)
    raw.unlink()
    with pytest.raises(UnreadableImageError, match=r"scan\.raw"):
        _whole(path)


def test_read_block_refuses_packed_voxels_that_unpack_to_more(tmp_path: Path) -> None:
    path = _edit(_write(tmp_path), "CompressedData = False", "CompressedData = True")
    for content in (zlib.compress(b"\0" * 10_000_000), zlib.compress(b"\0" * 239), b"nothing"):
        (tmp_path / "scan.raw").write_bytes(content)
        with pytest.raises(UnreadableImageError, match=r"scan\.raw"):
            _whole(path)
