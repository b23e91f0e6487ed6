import io

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundImageStorage,
)

from medfed.client.data.deidentification.burnt_in import clean_pixels, mask, sampled_frames
from medfed.client.data.deidentification.codestream import blanked_comments
from medfed.client.data.deidentification.header_facts import text_facts
from medfed.client.data.deidentification.pixel_data import clean_pixel_data
from medfed.client.data.deidentification.report import Report
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.text_detection import find_text
from medfed.client.data.deidentification.text_marks import Box
from medfed.common.errors import UnreadableImageError

from .conftest import written

_MASK, _REFUSE = Rules(burnt_in="mask"), Rules(burnt_in="refuse")
_NAME = "ZWEISTEIN OTTILIE 1941"


def _screen(text: str, ground: int = 20) -> npt.NDArray[np.uint8]:
    """An ultrasound screen [200, 320]: text above a smooth fan."""
    y, x = np.mgrid[:200, :320]
    fan = np.where((y > 60) & (abs(x - 160) < y / 2), 90 + 40 * np.sin(y / 25), ground)
    image = Image.fromarray(fan.astype(np.uint8))
    ImageDraw.Draw(image).text((8, 8), text, fill=240, font=ImageFont.load_default(16))
    return np.asarray(image)


def _ultrasound(image: Dataset, pixels: npt.NDArray[np.uint8]) -> Dataset:
    """`image` as an ultrasound object of [H, W], [H, W, 3] or [F, H, W]."""
    colours = pixels.shape[-1] == 3
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    image.Modality = "US"
    if pixels.ndim == 3 and not colours:
        image.NumberOfFrames = len(pixels)
    image.Rows, image.Columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    image.SamplesPerPixel = 3 if colours else 1
    image.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        image.PlanarConfiguration = 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OB"
    return image


def _cleaned(image: Dataset, rules: Rules = _MASK) -> tuple[Dataset, Report]:
    report = Report()
    dataset = pydicom.dcmread(io.BytesIO(written(image)))
    clean_pixel_data(dataset, text_facts(dataset), rules, report)
    return pydicom.dcmread(io.BytesIO(written(dataset))), report


def test_clean_pixel_data_paints_text_over_and_nothing_else(image: Dataset) -> None:
    pixels = _screen(_NAME)
    after, report = _cleaned(_ultrasound(image, pixels))

    painted = np.zeros(pixels.shape, bool)
    for box in report.boxes:
        painted[box.top : box.bottom, box.left : box.right] = True
    assert find_text(after.pixel_array) == ()
    assert (after.pixel_array[painted] == 20).all()
    np.testing.assert_array_equal(after.pixel_array[~painted], pixels[~painted])
    assert not painted[60:].any()
    # Nobody claims that all text is gone until a person has looked.
    assert after.BurnedInAnnotation == "YES"


def test_clean_pixel_data_refuses_text_when_told_so(image: Dataset) -> None:
    with pytest.raises(UnreadableImageError, match="Burnt-in text"):
        _cleaned(_ultrasound(image, _screen(_NAME)), _REFUSE)


def test_clean_pixel_data_leaves_pictures_without_text_alone(image: Dataset) -> None:
    pixels = _screen("")
    after, report = _cleaned(_ultrasound(image, pixels), _REFUSE)
    assert after.PixelData == pixels.tobytes()
    assert report.boxes == ()


@pytest.mark.parametrize("rules", [_MASK, _REFUSE])
def test_clean_pixel_data_refuses_what_the_header_says_and_nobody_sees(
    image: Dataset, rules: Rules
) -> None:
    image.BurnedInAnnotation = "YES"
    with pytest.raises(UnreadableImageError, match="header"):
        _cleaned(_ultrasound(image, _screen("")), rules)


def test_clean_pixel_data_clears_all_outside_the_ultrasound_regions(image: Dataset) -> None:
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 50, 60
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 269, 199
    image.SequenceOfUltrasoundRegions = [region]
    pixels = _screen("i")
    pixels = pixels.copy()
    pixels[10:14, 300:304] = 200
    after, _ = _cleaned(_ultrasound(image, pixels))
    np.testing.assert_array_equal(after.pixel_array[60:200, 50:270], pixels[60:200, 50:270])
    assert after.pixel_array[:60].max() == after.pixel_array[:60].min()


def test_clean_pixel_data_paints_every_frame_where_one_has_text(image: Dataset) -> None:
    frames = np.stack([_screen("") for _ in range(5)])
    frames[2] = _screen(_NAME)
    after, report = _cleaned(_ultrasound(image, frames))
    assert report.boxes
    assert after.NumberOfFrames == 5
    assert all(find_text(frame) == () for frame in after.pixel_array)


def test_clean_pixel_data_sees_coloured_text_as_bright_as_its_ground(image: Dataset) -> None:
    grey = _screen("", ground=110)
    colours = np.stack([grey] * 3, axis=-1)
    picture = Image.fromarray(colours)
    # Luminance of this red is that of the ground.
    ImageDraw.Draw(picture).text((8, 8), _NAME, fill=(255, 60, 0), font=ImageFont.load_default(16))
    after, report = _cleaned(_ultrasound(image, np.asarray(picture)))
    assert report.boxes
    assert np.ptp(after.pixel_array[:40].reshape(-1, 3), axis=0).max() == 0


def test_clean_pixel_data_sees_text_in_palette_colours(image: Dataset) -> None:
    shown = _screen(_NAME)
    # Neighbouring indices are black and white: as grey levels they would look alike.
    indices = (shown > 150).astype(np.uint8) + 100
    dataset = _ultrasound(image, indices)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    table = np.zeros(256, np.uint16)
    table[101] = 0xFFFF
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
    after, report = _cleaned(dataset)
    assert report.boxes
    assert (after.pixel_array == 100).all()


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, RLELossless])
def test_clean_pixel_data_keeps_the_picture_in_other_syntaxes(image: Dataset, syntax: str) -> None:
    pixels = _screen(_NAME).astype(np.uint16) * 16
    dataset = _ultrasound(image, _screen(_NAME))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    else:
        dataset.PixelData = pixels.byteswap().tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
    after, report = _cleaned(dataset)
    assert report.boxes
    np.testing.assert_array_equal(after.pixel_array[60:], pixels[60:])
    assert np.ptp(after.pixel_array[:30]) == 0


def test_clean_pixel_data_refuses_pixels_that_nobody_can_look_at(image: Dataset) -> None:
    dataset = _ultrasound(image, _screen(_NAME))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([b"not a jpeg at all, but long enough"])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableImageError, match="decoded"):
        _cleaned(dataset)


def test_text_facts_of_a_dose_screen_in_a_ct_series(image: Dataset) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert not text_facts(image).possible
    image.ImageType = ["ORIGINAL", "SECONDARY", "SCREEN SAVE"]
    assert text_facts(image).possible


def test_clean_pixels_works_without_a_data_set(image: Dataset) -> None:
    frames = _screen(_NAME)[np.newaxis]
    facts = text_facts(image)
    cleaned = clean_pixels(frames, facts, _MASK)
    assert cleaned.boxes
    assert find_text(np.asarray(cleaned.pixels[0], np.uint8)) == ()
    with pytest.raises(UnreadableImageError):
        clean_pixels(frames, facts, _REFUSE)


def test_mask_paints_a_value_that_occurs_around_it() -> None:
    pixels = np.array([[[7, 7, 7, 7], [7, 99, 98, 7], [7, 7, 9, 7]]], np.int16)
    masked = mask(pixels, [Box(1, 1, 2, 3)])
    assert masked[0, 1].tolist() == [7, 7, 7, 7]
    assert pixels[0, 1, 1] == 99


def test_sampled_frames_are_few_and_hold_both_ends() -> None:
    assert sampled_frames(1) == [0]
    assert sampled_frames(3) == [0, 1, 2]
    chosen = sampled_frames(1000)
    assert len(chosen) == 12
    assert (chosen[0], chosen[-1]) == (0, 999)


def test_blanked_comments_keeps_the_picture_of_a_jpeg_and_its_length() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "photo of Zweistein"
    Image.fromarray(_screen("")).save(buffer, "JPEG", comment=b"Zweistein", exif=exif)
    frame = buffer.getvalue()
    assert frame.count(b"Zweistein") == 2

    blanked = blanked_comments(frame)

    assert b"Zweistein" not in blanked
    assert len(blanked) == len(frame)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(frame))), np.asarray(Image.open(io.BytesIO(blanked)))
    )
    assert blanked_comments(b"\x00\x01RLE has none") == b"\x00\x01RLE has none"
