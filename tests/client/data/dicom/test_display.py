"""Grey and colour as the standard's formulas, or pydicom's own functions, give them."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

sys.path.insert(0, str(Path(__file__).parent))

from slices import item, slice_dataset, write_slice

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.dicom.decoding import read_pixels
from medfed.client.data.dicom.display import read_image, to_display
from medfed.client.data.dicom.presets import Window
from medfed.common.errors import UnreadableImageError

LIMITS = ReadLimits()
HU: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}


def shown(
    tmp_path: Path, values: npt.NDArray[Any], window: Window = "auto", **elements: Any
) -> npt.NDArray[np.uint8]:
    return read_image(write_slice(tmp_path / "a.dcm", values, **elements), window, LIMITS)


def ramp(dtype: type, low: int, high: int, side: int = 32) -> npt.NDArray[Any]:
    return np.linspace(low, high, side * side).reshape(side, side).astype(dtype)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("side", [32, 300])
def test_window_is_that_of_pydicom(tmp_path: Path, function: str, side: int) -> None:
    values = ramp(np.uint16, 0, 4095, side)
    elements = {
        "WindowCenter": 40,
        "WindowWidth": 400,
        "VOILUTFunction": function,
        "BitsStored": 12,
    }
    got = shown(tmp_path, values, **elements, **HU)
    dataset = slice_dataset(values, **elements, **HU)
    windowed = apply_windowing(apply_modality_lut(values, dataset), dataset)
    # pydicom's output spans the values that 12 bits can have after rescaling.
    expected = (windowed + 1024) / 4095 * 255
    assert np.abs(got.astype(np.float64) - expected).max() <= 0.51


def test_first_of_several_windows_is_used(tmp_path: Path) -> None:
    values = ramp(np.uint16, 0, 4095)
    one = shown(tmp_path, values, WindowCenter=500, WindowWidth=100)
    two = shown(tmp_path, values, WindowCenter=[500, 2000], WindowWidth=[100, 4000])
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("width", "function"), [(0, "LINEAR"), (-5, "LINEAR_EXACT")])
def test_impossible_window_is_passed_over(tmp_path: Path, width: int, function: str) -> None:
    values = ramp(np.uint16, 0, 4095)
    plain = shown(tmp_path, values, Modality="MR")
    got = shown(
        tmp_path, values, Modality="MR", WindowCenter=5, WindowWidth=width, VOILUTFunction=function
    )
    np.testing.assert_array_equal(got, plain)
    assert (got.min(), got.max()) == (0, 255)


@pytest.mark.parametrize(
    ("window", "black", "white"),
    [("lung", -1350, 150), ("soft_tissue", -160, 240), ("bone", -500, 1300), ("brain", 0, 80)],
)
def test_preset_has_its_ends_in_hounsfield_units(
    tmp_path: Path, window: Window, black: int, white: int
) -> None:
    inside = (white - black) // 100 + 2
    hounsfield = np.array([[black - 5, black + inside, white - inside, white + 5]], np.int16)
    got = shown(tmp_path, hounsfield, window, **{**HU, "RescaleIntercept": 0})
    assert got[0, 0] == 0
    assert got[0, 3] == 255
    assert 0 < got[0, 1] < got[0, 2] < 255


def test_preset_is_refused_where_there_are_no_hounsfield_units(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="Hounsfield"):
        shown(tmp_path, ramp(np.uint16, 0, 100), "lung", Modality="MR")
    with pytest.raises(UnreadableImageError, match="Hounsfield"):
        shown(tmp_path, ramp(np.uint16, 0, 100), "lung", **{**HU, "RescaleType": "US"})


def test_percentiles_pass_over_a_window_that_does_not_fit(tmp_path: Path) -> None:
    values = ramp(np.uint16, 2, 154)
    file = {"Modality": "MR", "WindowCenter": 470, "WindowWidth": 950}
    dark = shown(tmp_path, values, **file)
    assert dark.max() < 64
    own = shown(tmp_path, values, "percentiles", **file)
    assert (own.min(), own.max()) == (0, 255)
    without = shown(tmp_path, values, Modality="MR")
    np.testing.assert_array_equal(own, without)


def test_window_of_ones_own_is_in_the_modalitys_unit(tmp_path: Path) -> None:
    values = np.array([[0, 100, 200]], np.uint16)
    got = shown(tmp_path, values, (200.0, 201.0), RescaleSlope=2, RescaleIntercept=0)
    np.testing.assert_array_equal(got, [[0, 128, 255]])


def test_monochrome1_is_the_negative(tmp_path: Path) -> None:
    values = ramp(np.uint16, 0, 4095)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    positive = shown(tmp_path, values, **window)
    negative = shown(tmp_path, values, PhotometricInterpretation="MONOCHROME1", **window)
    assert np.abs(positive.astype(int) + negative - 255).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_widen_the_range(tmp_path: Path, photometric: str) -> None:
    values = ramp(np.int16, 100, 200)
    elements = {"Modality": "MR", "PhotometricInterpretation": photometric}
    plain = shown(tmp_path, values, **elements)
    values[:4] = -2000
    got = shown(tmp_path, values, PixelPaddingValue=-2000, **elements)
    assert (got[:4] == 0).all()
    assert np.abs(got[4:].astype(int) - plain[4:]).max() < 40
    assert len(np.unique(got[4:])) > 60


def test_padding_range_and_unsigned_notation_of_a_signed_value(tmp_path: Path) -> None:
    values = ramp(np.int16, 0, 255)
    values[0, :3] = -2000, -1500, -1000
    window = {"WindowCenter": -800, "WindowWidth": 3000}
    dataset = slice_dataset(values, **window)
    # US, as many scanners write it: 63536 has the bits of -2000.
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.add_new("PixelPaddingRangeLimit", "US", 64036)
    path = tmp_path / "a.dcm"
    dataset.save_as(path, enforce_file_format=True)
    got = read_image(path, "auto", LIMITS)
    assert got[0, 0] == got[0, 1] == 0
    assert got[0, 2] > 0


@pytest.mark.parametrize("stored", [8, 10, 12, 16])
def test_unused_bits_are_cleared(tmp_path: Path, stored: int) -> None:
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 1 << stored, (8, 8)).astype(np.uint16)
    overlay = rng.integers(0, 1 << (16 - stored), (8, 8)).astype(np.uint16) << stored
    dirty = (clean + overlay * (stored < 16)).astype(np.uint16)
    pixels = read_pixels(write_slice(tmp_path / "a.dcm", dirty, BitsStored=stored), LIMITS)
    np.testing.assert_array_equal(pixels.values[0], clean)


def test_signed_values_of_twelve_bits_keep_their_sign(tmp_path: Path) -> None:
    values = np.array([[-2048, -1, 0, 2047]], np.int16)
    path = write_slice(tmp_path / "a.dcm", values & 0x0FFF, BitsStored=12)
    np.testing.assert_array_equal(read_pixels(path, LIMITS).values[0], values)


@pytest.mark.parametrize("narrow", [True, False])
def test_modality_lut_is_that_of_pydicom(tmp_path: Path, narrow: bool) -> None:
    entries = np.linspace(0, 250 if narrow else 4000, 200).astype(np.uint16)
    data = entries.astype(np.uint8 if narrow else "<u2").tobytes()
    lut = item(LUTDescriptor=[200, 30, 8 if narrow else 16], LUTData=data, ModalityLUTType="US")
    lut["LUTData"].VR = "OW"
    lut["LUTDescriptor"].VR = "US"
    values = ramp(np.uint8, 0, 255)
    window = {"WindowCenter": 128, "WindowWidth": 4096}
    got = shown(tmp_path, values, ModalityLUTSequence=[lut], **window)
    expected = entries[np.clip(values.astype(int) - 30, 0, 199)].astype(np.float64)
    expected = np.clip(((expected - 127.5) / 4095 + 0.5) * 255, 0, 255)
    assert np.abs(got - expected).max() <= 0.51


def test_voi_lut_goes_before_the_window_and_is_that_of_pydicom(tmp_path: Path) -> None:
    entries = (np.linspace(0, 1, 4096) ** 2 * 1023).astype("<u2")
    lut = item(LUTDescriptor=[4096, -1024 & 0xFFFF, 10], LUTData=entries.tobytes())
    lut["LUTData"].VR = "OW"
    lut["LUTDescriptor"].VR = "US"
    values = ramp(np.uint16, 0, 4095)
    got = shown(tmp_path, values, VOILUTSequence=[lut], WindowCenter=0, WindowWidth=10, **HU)
    signed = item(LUTDescriptor=[4096, -1024, 10], LUTData=entries.tobytes())
    signed["LUTData"].VR = "OW"
    signed["LUTDescriptor"].VR = "SS"
    dataset = slice_dataset(values, VOILUTSequence=[signed], **HU)
    expected = apply_voi(apply_modality_lut(values, dataset).astype(np.int16), dataset) / 1023 * 255
    assert np.abs(got - expected).max() <= 0.51


def test_radiograph_without_a_window_spans_black_to_white(tmp_path: Path) -> None:
    values = ramp(np.uint16, 500, 3000)
    values[0, 0] = 60000
    got = shown(tmp_path, values, Modality="DX")
    assert got[0, 1] == 0
    assert np.unique(got).size > 200


def test_ultrasound_of_eight_bits_is_shown_as_it_is(tmp_path: Path) -> None:
    values = ramp(np.uint8, 3, 99)
    np.testing.assert_array_equal(shown(tmp_path, values, Modality="US"), values)


def test_one_value_alone_is_black_and_no_error(tmp_path: Path) -> None:
    assert not shown(tmp_path, np.full((8, 8), 77, np.uint16), Modality="MR").any()


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_is_shown_in_eight_bits(tmp_path: Path, planar: int, bits: int) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    stored = colour if bits == 8 else colour.astype(np.uint16) * 257
    if planar:
        stored = np.ascontiguousarray(stored.transpose(2, 0, 1)).reshape(5, 7, 3)
    got = shown(
        tmp_path,
        stored,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=planar,
        Modality="US",
    )
    np.testing.assert_array_equal(got, colour)


def test_ybr_full_becomes_rgb(tmp_path: Path) -> None:
    # PS3.3 C.7.6.3.1.2: pure red is (76, 85, 255), grey is (y, 128, 128).
    ybr = np.array([[[76, 85, 255], [99, 128, 128]]], np.uint8)
    got = shown(
        tmp_path,
        ybr,
        SamplesPerPixel=3,
        PhotometricInterpretation="YBR_FULL",
        PlanarConfiguration=0,
        Modality="US",
    )
    assert np.abs(got.astype(int) - [[[255, 0, 0], [99, 99, 99]]]).max() <= 1


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 3]], np.uint8)
    red, green, blue = ([0, 255, 128, 7], [0, 0, 255, 8], [0, 1, 2, 255])
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    for name, entries in zip(("Red", "Green", "Blue"), (red, green, blue), strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        table = np.array(entries, "<u2") * 257
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    got = shown(tmp_path, values, **elements)
    np.testing.assert_array_equal(got[0], np.array([red, green, blue]).T)


def test_frames_use_their_own_rescaling_and_share_one_window(tmp_path: Path) -> None:
    values = np.full((3, 4, 4), 100, np.uint16)
    groups = [
        item(PixelValueTransformationSequence=[item(RescaleSlope=s, RescaleIntercept=i)])
        for s, i in [(1, 0), (2, 0), (1, 100)]
    ]
    shared = [item(FrameVOILUTSequence=[item(WindowCenter=150, WindowWidth=201)])]
    got = shown(
        tmp_path,
        values,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=groups,
    )
    assert [int(frame[0, 0]) for frame in got] == [64, 192, 192]


def test_floating_point_pixels_are_shown_and_nan_is_black(tmp_path: Path) -> None:
    dataset = slice_dataset(np.zeros((2, 2), np.uint16), Modality="OT", BitsAllocated=32)
    del dataset.PixelData
    values = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
    dataset.FloatPixelData = values.tobytes()
    dataset.WindowCenter, dataset.WindowWidth = 0.5, 1
    path = tmp_path / "a.dcm"
    dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_image(path, "auto", LIMITS), [[0, 128], [255, 0]])


def test_monochrome_pair_of_real_radiographs_is_one_picture_and_its_negative() -> None:
    root = Path(os.environ.get("MEDFED_TEST_DATA", Path(__file__).parents[4] / "../shared/data"))
    folder = root / "dicom/cxr_mono_pair"
    if not folder.is_dir():
        pytest.skip(f"no real data at {root}; set MEDFED_TEST_DATA")
    name = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"
    positive = to_display(read_pixels(folder / name, LIMITS)).astype(int)
    negative = to_display(read_pixels(folder / "Fake_MONOHR1.dcm", LIMITS))
    np.testing.assert_array_equal(positive, 255 - negative.astype(int))
    # Lungs are dark and the spine is bright in the true one.
    assert positive[400:600, 480:540].mean() > positive[400:600, 250:350].mean()
