"""GDCM's own reader, by itself, finds the same stored values in every lossless file."""

import csv
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.dicom.decoding import Pixels, read_pixels

gdcm = pytest.importorskip("gdcm")

REAL = (
    Path(os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data"))
    / "dicom"
)
LIMITS = ReadLimits()
LOSSLESS = {
    "Implicit VR Little Endian",
    "Explicit VR Little Endian",
    "Explicit VR Big Endian",
    "Deflated Explicit VR Little Endian",
    "RLE Lossless",
    "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    "JPEG-LS Lossless Image Compression",
    "JPEG 2000 Image Compression (Lossless Only)",
}
# GDCM's reader ends the process on RT dose of one frame, knows no floating point, and puts bytes
# in the wrong order where samples of 16 or 32 bits are RLE colour or big-endian words. Those files
# are held to their siblings below.
NOT_BY_GDCM = {
    "rtdose_1frame",
    "rtdose_expb_1frame",
    "rtdose_rle_1frame",
    "rtdose_expb",
    "parametric_map_float",
    "SC_rgb_rle_16bit",
    "SC_rgb_rle_16bit_2frame",
    "SC_rgb_rle_32bit",
    "SC_rgb_rle_32bit_2frame",
}
# Its codestream is signed and its header is not understood by GDCM to be so: values below 0 come
# out 2^13 too high.
WRAPS = {"J2K_pixelrep_mismatch.dcm": 1 << 13}


def lossless_files() -> list[dict[str, str]]:
    if not (REAL / "index.csv").is_file():
        return []
    with (REAL / "index.csv").open(newline="", encoding="utf-8") as file:
        return [
            row
            for row in csv.DictReader(file)
            if row["transfer_syntax"] in LOSSLESS
            and row["decoded_by_pydicom3"].startswith("(")
            and Path(row["path"]).stem not in NOT_BY_GDCM
        ]


TYPES = {
    gdcm.PixelFormat.UINT8: np.uint8,
    gdcm.PixelFormat.UINT16: np.uint16,
    gdcm.PixelFormat.UINT12: np.uint16,
    gdcm.PixelFormat.INT16: np.int16,
    gdcm.PixelFormat.UINT32: np.uint32,
}


def by_gdcm(path: Path, like: Pixels) -> npt.NDArray[np.generic]:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read(), path
    image = reader.GetImage()
    raw = image.GetBuffer().encode("utf-8", "surrogateescape")
    kind = image.GetPixelFormat().GetScalarType()
    if kind == gdcm.PixelFormat.SINGLEBIT:
        values = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        return values[: like.values.size].reshape(like.values.shape)
    values = np.frombuffer(raw, TYPES[kind])[: like.values.size]
    if not like.is_colour:
        return values.reshape(like.values.shape)
    frames, rows, columns, samples = like.values.shape
    if image.GetPlanarConfiguration() == 1:
        return values.reshape(frames, samples, rows, columns).transpose(0, 2, 3, 1)
    values = values.reshape(like.values.shape)
    photometric = image.GetPhotometricInterpretation().GetString()
    return rgb(values) if photometric.startswith("YBR_FULL") else values


def rgb(ybr: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """DICOM PS3.3 C.7.6.3.1.2, solved for R, G, B."""
    y, b, r = np.moveaxis(ybr.astype(np.float64), -1, 0)
    red, blue = y + 1.402 * (r - 128), y + 1.772 * (b - 128)
    green = y - 0.344136 * (b - 128) - 0.714136 * (r - 128)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255)


def test_there_are_lossless_files_of_every_kind() -> None:
    files = lossless_files()
    if not files:
        pytest.skip(f"no real data at {REAL}; set MEDFED_TEST_DATA")
    assert {row["transfer_syntax"] for row in files} == LOSSLESS
    assert len(files) > 150


@pytest.mark.parametrize("row", lossless_files(), ids=lambda row: row["path"])
def test_values_are_those_that_gdcm_reads(row: dict[str, str]) -> None:
    path = REAL / row["path"]
    pixels = read_pixels(path, LIMITS)
    other = by_gdcm(path, pixels).astype(np.float64)
    apart = np.abs(pixels.values.astype(np.float64) - other)
    if path.name in WRAPS:
        assert set(np.unique(apart)) == {0, WRAPS[path.name]}
        assert (apart > 0).tolist() == (pixels.values < 0).tolist()
    elif row["photometric"] == "YBR_FULL_422":
        # Rounded to whole numbers after the change of colour space.
        assert apart.max() <= 1
    else:
        assert apart.max() == 0


@pytest.mark.parametrize(
    ("name", "sibling", "factor"),
    [
        ("rtdose_1frame", "rtdose_expb_1frame", 1),
        ("rtdose_1frame", "rtdose_rle_1frame", 1),
        ("rtdose", "rtdose_expb", 1),
        ("rtdose", "rtdose_rle", 1),
        # The same colour bars, white being 2^8 - 1, 2^16 - 1 and 2^32 - 1.
        ("SC_rgb_rle", "SC_rgb_rle_16bit", 257),
        ("SC_rgb_rle_2frame", "SC_rgb_rle_16bit_2frame", 257),
        ("SC_rgb_rle", "SC_rgb_rle_32bit", 16843009),
        ("SC_rgb_rle_2frame", "SC_rgb_rle_32bit_2frame", 16843009),
    ],
)
def test_values_are_those_of_the_same_picture_in_another_encoding(
    name: str, sibling: str, factor: int
) -> None:
    folder = REAL / "pydicom_test_files"
    if not folder.is_dir():
        pytest.skip(f"no real data at {REAL}; set MEDFED_TEST_DATA")
    first = read_pixels(folder / f"{name}.dcm", LIMITS).values.astype(np.int64)
    second = read_pixels(folder / f"{sibling}.dcm", LIMITS).values.astype(np.int64)
    np.testing.assert_array_equal(second, first * factor)


WG04 = ("CT1", "MR1", "NM1")
# NEAR of the encoder (T.87), by which no value may be off.
NEAR = 4
# Mean error of a stored value, as a share of the range of values.
LOSSY_SHARE = 0.02


def wg04(folder: str, name: str) -> npt.NDArray[np.int64]:
    suffix = "UNC" if folder == "REF" else folder
    path = REAL / "wg04" / folder / f"{name}_{suffix}"
    if not path.is_file():
        pytest.skip(f"no real data at {REAL}; set MEDFED_TEST_DATA")
    return read_pixels(path, LIMITS).values.astype(np.int64)


@pytest.mark.parametrize("name", WG04)
@pytest.mark.parametrize("folder", ["J2KR", "JLSL", "JPLL", "RLE"])
def test_wg04_lossless_equals_the_reference_bit_for_bit(folder: str, name: str) -> None:
    np.testing.assert_array_equal(wg04(folder, name), wg04("REF", name))


@pytest.mark.parametrize("name", WG04)
def test_wg04_near_lossless_is_within_its_stated_error(name: str) -> None:
    apart = np.abs(wg04("JLSN", name) - wg04("REF", name))
    assert 0 < apart.max() <= NEAR


@pytest.mark.parametrize("name", WG04)
def test_wg04_lossy_resembles_the_reference(name: str) -> None:
    reference = wg04("REF", name)
    apart = np.abs(wg04("J2KI", name) - reference)
    assert 0 < apart.mean() <= LOSSY_SHARE * np.ptp(reference)
