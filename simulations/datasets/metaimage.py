"""Reads MetaImage volumes (.mhd with .raw or .zraw), a block at a time where they are not packed.

Only what LUNA16 and its likes write is taken: three axes along the patient's own, in either
direction, one channel. SimpleITK, the format's usual reader, is 50 MB of binaries for this.
The keys: https://itk.org/Wiki/ITK/MetaIO/Documentation

Shapes: D, H, W are x, y, z (right, anterior, superior), as `medfed.client.data.nifti`.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UnreadableImageError

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Older programs write other names for the same.
_SYNONYMS = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_REQUIRED = ("DimSize", "ElementSpacing", "Offset", "ElementType", "ElementDataFile")
_MAX_HEADER_BYTES = 100_000
_MAX_VOXELS = 2**31
_TILT = 1e-3


@dataclass(frozen=True, kw_only=True)
class MetaImage:
    """A volume as its header describes it.

    Attributes:
        path: The .mhd.
        data: The file with the voxels.
        shape: Voxels along the file's x, y, z.
        spacing_mm: Size of a voxel along x, y, z.
        origin_mm: Place of the first voxel's centre: to the left, posterior, superior.
        signs: 1 where the file's axis runs to the left, posterior, superior, -1 the other way.
        dtype: Of a voxel, with its byte order.
        packed: zlib-compressed.
    """

    path: Path
    data: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    signs: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    packed: bool

    def voxel_at(self, place_mm: Sequence[float]) -> tuple[int, int, int]:
        """Return the indices along the file's x, y, z of the voxel nearest to a place.

        Args:
            place_mm: To the left, posterior, superior, as ITK and LUNA16 count.
        """
        x, y, z = (
            round((place - origin) * sign / size)
            for place, origin, sign, size in zip(
                place_mm, self.origin_mm, self.signs, self.spacing_mm, strict=True
            )
        )
        return x, y, z


def read_header(path: Path) -> MetaImage:
    """Return what the header at `path` says; no voxel is read.

    Raises:
        UnreadableImageError: No such header, or one of a kind that is not taken.
    """
    values = _read_values(path)
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise _bad(path, f"no {', '.join(missing)}")
    expected = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "HeaderSize": "0"}
    expected["ElementNumberOfChannels"] = "1"
    for key, value in expected.items():
        if values.get(key, value).lower() != value.lower():
            raise _bad(path, f"{key} = {values[key]} where {value} was expected")
    if values["ElementType"] not in _TYPES:
        raise _bad(path, f"ElementType = {values['ElementType']}")
    x, y, z = (_whole(path, values, "DimSize", number) for number in range(3))
    if min(x, y, z) < 1 or x * y * z > _MAX_VOXELS:
        raise _bad(path, f"DimSize = {values['DimSize']}")
    spacing = _numbers(path, values, "ElementSpacing", 3)
    if min(spacing) <= 0:
        raise _bad(path, f"ElementSpacing = {values['ElementSpacing']}")
    order = ">" if values.get("BinaryDataByteOrderMSB", "False").lower() == "true" else "<"
    return MetaImage(
        path=path,
        data=_data_file(path, values["ElementDataFile"]),
        shape=(x, y, z),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        origin_mm=_numbers(path, values, "Offset", 3)[:3],  # type: ignore[arg-type]
        signs=_signs(path, values),
        dtype=np.dtype(order + _TYPES[values["ElementType"]]),
        packed=values.get("CompressedData", "False").lower() == "true",
    )


def read_block(
    image: MetaImage, start: Sequence[int], stop: Sequence[int], fill: float
) -> npt.NDArray[np.float32]:
    """Return voxels `start` to `stop` (along the file's x, y, z), turned to [D, H, W].

    What lies outside the volume is `fill`. Of a volume that is not packed nothing else is read.

    Raises:
        UnreadableImageError: The file of voxels is missing, damaged or of another size.
    """
    voxels_zyx = _voxels(image)
    block = np.full([b - a for a, b in zip(start, stop, strict=True)], fill, dtype=np.float32)
    lows = [min(max(a, 0), side) for a, side in zip(start, image.shape, strict=True)]
    highs = [min(max(b, 0), side) for b, side in zip(stop, image.shape, strict=True)]
    if all(low < high for low, high in zip(lows, highs, strict=True)):
        inside = tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))
        there = tuple(
            slice(low - a, high - a) for low, high, a in zip(lows, highs, start, strict=True)
        )
        block[there] = voxels_zyx[inside[::-1]].transpose(2, 1, 0)
    # To the right, anterior, superior: against the file's left and posterior, along its superior.
    turned = tuple(slice(None, None, -sign) for sign in (*image.signs[:2], -image.signs[2]))
    return np.ascontiguousarray(block[turned])


def _voxels(image: MetaImage) -> npt.NDArray[np.generic]:
    shape_zyx = image.shape[::-1]
    expected = math.prod(shape_zyx) * image.dtype.itemsize
    try:
        if not image.packed:
            size = image.data.stat().st_size
            if size != expected:
                raise ValueError(f"{size} bytes where {image.path.name} announces {expected}")
            return np.memmap(image.data, dtype=image.dtype, mode="r", shape=shape_zyx)
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(image.data.read_bytes(), expected)
        if len(content) != expected or not unpacker.eof:
            raise ValueError(f"its voxels are not the {expected} bytes that the header announces")
        return np.frombuffer(content, dtype=image.dtype).reshape(shape_zyx)
    except (OSError, ValueError, zlib.error) as error:
        raise UnreadableImageError(
            f"{image.data} cannot be read as the voxels of {image.path.name} ({error}). Fetch it "
            "again, or leave the scan out."
        ) from None


def _read_values(path: Path) -> Mapping[str, str]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_HEADER_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, str(error)) from None
    if len(text) > _MAX_HEADER_BYTES:
        raise _bad(path, "too long")
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        key = _SYNONYMS.get(key, key)
        if (line.strip() and not equals) or key in values:
            raise _bad(path, f"{line.strip()[:60]!r}")
        if key:
            values[key] = value
    return values


def _data_file(path: Path, name: str) -> Path:
    # A header could otherwise have any file of the machine read.
    if not name or name.upper() in ("LOCAL", "LIST") or set(name) & set("/\\%") or name == "..":
        raise _bad(path, f"ElementDataFile = {name}, expected the name of a file beside it")
    return path.with_name(name)


def _signs(path: Path, values: Mapping[str, str]) -> tuple[int, int, int]:
    if "TransformMatrix" not in values:
        return 1, 1, 1
    matrix = np.array(_numbers(path, values, "TransformMatrix", 9)).reshape(3, 3)
    signs = np.sign(matrix.diagonal())
    if np.abs(matrix - np.diag(signs)).max() > _TILT or not signs.all():
        raise _bad(
            path, f"TransformMatrix = {values['TransformMatrix']}: axes that are not the patient's"
        )
    x, y, z = (int(sign) for sign in signs)
    return x, y, z


def _whole(path: Path, values: Mapping[str, str], key: str, number: int) -> int:
    value = _numbers(path, values, key, 3)[number]
    if value != round(value):
        raise _bad(path, f"{key} = {values[key]}")
    return round(value)


def _numbers(path: Path, values: Mapping[str, str], key: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in values[key].split())
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise _bad(path, f"{key} = {values[key]}, expected {count} numbers")
    return numbers


def _bad(path: Path, what: str) -> UnreadableImageError:
    return UnreadableImageError(
        f"{path} cannot be read as a MetaImage header of a volume ({what}). Fetch it again, or "
        "leave the scan out."
    )
