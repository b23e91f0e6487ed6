"""Identity planted where it hides: nothing of it is in the bytes that are written."""

import copy
import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from medfed.client.data.deidentification.engine import deidentify
from medfed.client.data.deidentification.profile import Option
from medfed.client.data.deidentification.rules import Rules

from .conftest import written

_EVERY_OPTION = Rules(
    options=(
        Option.RETAIN_SAFE_PRIVATE,
        Option.RETAIN_DEVICE_IDENTITY,
        Option.RETAIN_PATIENT_CHARACTERISTICS,
        Option.RETAIN_LONGITUDINAL_MODIFIED,
        Option.CLEAN_DESCRIPTORS,
        Option.CLEAN_STRUCTURED_CONTENT,
        Option.CLEAN_GRAPHICS,
    )
)
_BASIC = Rules(options=())


def _nested(image: Dataset) -> None:
    item, inner = Dataset(), Dataset()
    inner.PatientName = "Zweistein^Ottilie"
    inner.PatientID = "MRN-5551234"
    inner.LongCodeValue = "Zweistein"
    item.PerFrameFunctionalGroupsSequence = [inner]
    image.SharedFunctionalGroupsSequence = [item]


def _private(image: Dataset) -> None:
    block = image.private_block(0x0029, "SIEMENS MEDCOM HEADER", create=True)
    block.add_new(0x10, "LO", "Zweistein")
    inner = Dataset()
    inner.PatientName = "Zweistein^Ottilie"
    block.add_new(0x11, "SQ", [inner])
    safe = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    safe.add_new(0x0D, "CS", "ZWEISTEIN")


def _unknown(image: Dataset) -> None:
    image.add_new(0x00100010, "UN", b"Zweistein^Ottilie ")
    image.add_new(0x00081F77, "UN", b"Zweistein^Ottilie ")


def _overlay(image: Dataset) -> None:
    image.add_new(0x60000010, "US", 4)
    image.add_new(0x60000011, "US", 4)
    image.add_new(0x60000022, "LO", "for Zweistein")
    image.add_new(0x60001500, "LO", "Zweistein")
    image.add_new(0x60003000, "OW", b"Zweistein ")
    image.add_new(0x60004000, "LT", "Zweistein")
    image.add_new(0x50003000, "OW", b"Zweistein ")
    image.add_new(0x50000030, "SH", "Zweistein")


def _file_meta(image: Dataset) -> None:
    image.file_meta.SourceApplicationEntityTitle = "ZWEISTEIN"
    image.file_meta.PrivateInformationCreatorUID = "1.2.826.0.1.1234567.9.77"
    image.file_meta.PrivateInformation = b"Zweistein "
    image.preamble = b"Zweistein".ljust(128, b"\0")


def _comments(image: Dataset) -> None:
    image.ImageComments = "seen with Ottilie"
    image.PatientComments = "Zweistein lives alone"
    image.StudyDescription = "CT CHEST for Zweistein 5551234"
    image.SeriesDescription = "ZWEISTEIN THORAX"
    image.ProtocolName = "Zweistein"
    image.RequestedProcedureDescription = "Zweistein"


def _kept_elements(image: Dataset) -> None:
    """Elements that no table lists, used for what they are not for."""
    image.FilterType = "ZWEISTEIN"
    image.ManufacturerModelName = "Scanner of Zweistein"
    image.SoftwareVersions = ["1.0", "5551234"]
    image.BodyPartExamined = "OTTILIE"
    code = Dataset()
    code.CodeValue = "77"
    code.CodingSchemeDesignator = "99HOUSE"
    code.CodeMeaning = "Walk with Zweistein"
    image.AnatomicRegionSequence = [code]
    image.RadiopharmaceuticalRoute = "study 1.2.826.0.1.1234567.9.2"


def _multi_byte(image: Dataset) -> None:
    image.SpecificCharacterSet = ["ISO 2022 IR 6", "ISO 2022 IR 87"]
    image.PatientName = "Zweistein^Ottilie=山田^太郎=やまだ^たろう"
    image.PerformingPhysicianName = "Zweistein^Ottilie=山田^太郎"
    image.FilterType = "山田"


def _report(image: Dataset) -> None:
    text, name, date, uid = Dataset(), Dataset(), Dataset(), Dataset()
    text.ValueType, text.TextValue = (
        "TEXT",
        "Frau Zweistein, geb. 1941, has a mass in the left lung",
    )
    name.ValueType, name.PersonName = "PNAME", "Zweistein^Ottilie"
    date.ValueType, date.Date = "DATE", "20190312"
    uid.ValueType, uid.UID = "UIDREF", "1.2.826.0.1.1234567.9.2"
    container = Dataset()
    container.ValueType = "CONTAINER"
    container.ContentSequence = [name, date, uid]
    image.ContentSequence = [text, container]
    image.VerifyingObserverName = "Zweistein^Ottilie"


_PLACES = [
    *(_nested, _private, _unknown, _overlay, _file_meta, _comments, _kept_elements),
    *(_multi_byte, _report),
]


def _traces() -> list[bytes]:
    words = ["Zweistein", "Ottilie", "5551234", "19410207", "20190312", "1234567.9", "山田", "太郎"]
    traces = []
    for word in words:
        for encoding in ("utf-8", "iso2022_jp", "shift_jis", "utf-16-le", "gb18030"):
            encoded = word.encode(encoding)
            traces += [encoded, encoded.upper(), encoded.lower()]
    # ISO 2022 has escapes around: what is between them counts.
    return [trace.strip(b"\x1b$B(J") for trace in traces]


@pytest.mark.parametrize("rules", [_BASIC, _EVERY_OPTION], ids=["basic", "options"])
@pytest.mark.parametrize("plant", _PLACES)
def test_deidentify_leaves_nothing_of_what_was_planted(
    plant: object, rules: Rules, image: Dataset, key: bytes
) -> None:
    assert callable(plant)
    plant(image)
    # As from a file, where values are still raw.
    if plant is not _unknown:
        image = pydicom.dcmread(io.BytesIO(written(image)))

    deidentify(image, rules, key)

    content = written(image)
    for trace in _traces():
        assert trace not in content
    again = pydicom.dcmread(io.BytesIO(content))
    assert again.PatientIdentityRemoved == "YES"
    assert str(again.PatientName) == again.PatientID


def test_every_planted_trace_is_found_before_deidentification(image: Dataset) -> None:
    """The test above would pass on anything if its traces were never in the bytes."""
    for plant in _PLACES:
        planted = copy.deepcopy(image)
        plant(planted)
        content = written(planted)
        assert any(trace in content for trace in _traces()[:30]), plant.__name__
    _multi_byte(image)
    japanese = _traces()[-30:]
    assert any(trace in written(image) for trace in japanese)


def test_deidentify_maps_uids_alike_in_references(image: Dataset, key: bytes) -> None:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    image.ReferencedImageSequence = [reference]
    image.FrameOfReferenceUID = "1.2.840.10008.1.4.1.1"

    deidentify(image, _BASIC, key)

    assert image.SOPInstanceUID.startswith("2.25.")
    assert image.ReferencedImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
    # The standard's own UIDs name no one.
    assert image.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"


def test_deidentify_resolves_compound_actions_by_the_type_in_the_iod(
    image: Dataset, key: bytes
) -> None:
    def filled(sop_class: str) -> Dataset:
        dataset = copy.deepcopy(image)
        dataset.SOPClassUID = sop_class
        dataset.SeriesDate = "20190312"  # X/D
        dataset.ContentDate = "20190312"  # Z/D
        dataset.DeviceSerialNumber = "77"  # X/Z/D
        deidentify(dataset, _BASIC, key)
        return dataset

    classic, enhanced = filled(image.SOPClassUID), filled(EnhancedCTImageStorage)

    assert "SeriesDate" not in classic
    assert classic.ContentDate == ""
    assert "DeviceSerialNumber" not in classic
    # Enhanced General Equipment asks for a serial number: a dummy.
    assert enhanced.DeviceSerialNumber == "REMOVED"
    assert enhanced.ContentDate == "19000101"


def test_deidentify_keeps_safe_private_elements_with_their_creator(
    image: Dataset, key: bytes
) -> None:
    safe = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    safe.add_new(0x0C, "IS", "1000")
    safe.add_new(0x08, "LO", "not listed")
    image.private_block(0x0021, "SIEMENS MR SDS 01", create=True).add_new(0x01, "LO", "no")

    report = deidentify(image, Rules(options=(Option.RETAIN_SAFE_PRIVATE,)), key)

    assert image[0x0019, 0x100C].value == 1000
    assert image[0x0019, 0x0010].value == "SIEMENS MR HEADER"
    assert (0x0019, 0x1008) not in image
    assert (0x0021, 0x0010) not in image
    assert report.counts["private_kept"] == 1
    assert report.counts["private_removed"] == 2


def test_deidentify_caps_ages_and_keeps_characteristics_under_its_option(
    image: Dataset, key: bytes
) -> None:
    image.PatientAge, image.PatientSex, image.PatientWeight = "094Y", "F", "61"
    plain = copy.deepcopy(image)

    deidentify(image, Rules(options=(Option.RETAIN_PATIENT_CHARACTERISTICS,)), key)
    deidentify(plain, _BASIC, key)

    assert (image.PatientAge, image.PatientSex, image.PatientWeight) == ("090Y", "F", 61)
    assert image.PatientBirthDate == ""
    assert "PatientAge" not in plain
    assert plain.PatientSex == ""


def test_deidentify_cleans_descriptions_to_known_words(image: Dataset, key: bytes) -> None:
    image.StudyDescription = "CT Thorax w/o contrast, Dr. Huber, Klinikum Nord"
    image.SeriesDescription = "Huber"

    deidentify(image, Rules(options=(Option.CLEAN_DESCRIPTORS,)), key)

    assert image.StudyDescription == "CT THORAX WITHOUT CONTRAST"
    assert image.SeriesDescription == "REMOVED"


def test_deidentify_keeps_the_structure_of_reports_under_its_option(
    image: Dataset, key: bytes
) -> None:
    _report(image)
    plain = copy.deepcopy(image)

    deidentify(image, _EVERY_OPTION, key)
    deidentify(plain, _BASIC, key)

    assert image.ContentSequence[0].TextValue == "A MASS IN THE LEFT LUNG"
    name, date, uid = image.ContentSequence[1].ContentSequence
    assert str(name.PersonName) == "REMOVED"
    assert date.Date < "20190312"
    assert image.StudyInstanceUID == uid.UID
    assert [item.TextValue for item in plain.ContentSequence] == ["REMOVED"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "REMOVED"),
        ((Option.RETAIN_LONGITUDINAL_MODIFIED,), "MODIFIED"),
        ((Option.RETAIN_LONGITUDINAL_FULL,), "UNMODIFIED"),
    ],
)
def test_deidentify_says_what_it_did(
    options: tuple[Option, ...], said: str, image: Dataset, key: bytes
) -> None:
    deidentify(image, Rules(options=options, burnt_in="mask"), key)

    assert image.LongitudinalTemporalInformationModified == said
    codes = [item.CodeValue for item in image.DeidentificationMethodCodeSequence]
    assert codes[0] == "113100"
    assert len(codes) == 1 + len(options)
    assert "113101" not in codes
    assert all(len(value) <= 64 for value in image.DeidentificationMethod)


def test_deidentify_declares_utf8_where_kept_text_needs_it(image: Dataset, key: bytes) -> None:
    image.SpecificCharacterSet = "ISO_IR 100"
    plain = copy.deepcopy(image)
    image.ManufacturerModelName = "Gerät"

    for dataset in (image, plain):
        deidentify(dataset, _BASIC, key)

    again = pydicom.dcmread(io.BytesIO(written(image)))
    assert again.SpecificCharacterSet == "ISO_IR 192"
    assert again.ManufacturerModelName == "Gerät"
    assert "SpecificCharacterSet" not in plain


def test_deidentify_clears_overlay_bits_above_the_stored_ones(image: Dataset, key: bytes) -> None:
    pixels = np.array([[100, -5], [2047, -2048]], np.int16)
    drawn = (pixels & 0x0FFF | np.array([[1, 0], [1, 1]], np.int16) << 12).astype(np.int16)
    image.Rows = image.Columns = 2
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation, image.SamplesPerPixel = 1, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = drawn.tobytes()
    image.add_new(0x60000102, "US", 12)
    image = pydicom.dcmread(io.BytesIO(written(image)))

    deidentify(image, _BASIC, key)

    assert (0x6000, 0x0102) not in image
    np.testing.assert_array_equal(np.frombuffer(image.PixelData, "<i2").reshape(2, 2), pixels)


def test_clean_graphics_keeps_drawings_and_removes_writing(image: Dataset, key: bytes) -> None:
    from PIL import Image, ImageDraw

    for group, words in ((0x6000, ""), (0x6002, "ZWEISTEIN OTTILIE 1941")):
        plane = Image.new("1", (256, 64))
        draw = ImageDraw.Draw(plane)
        draw.ellipse((150, 10, 200, 50), outline=1)
        draw.text((5, 5), words, fill=1)
        bits = np.packbits(np.asarray(plane).ravel(), bitorder="little")
        for element, vr, value in (
            (0x10, "US", 64),
            (0x11, "US", 256),
            (0x40, "CS", "G"),
            (0x50, "SS", [1, 1]),
            (0x100, "US", 1),
            (0x102, "US", 0),
            (0x1500, "LO", "Zweistein"),
            (0x3000, "OW", bits.tobytes()),
        ):
            image.add_new(group << 16 | element, vr, value)

    deidentify(image, Rules(options=(Option.CLEAN_GRAPHICS,)), key)

    assert (0x6000, 0x3000) in image
    assert (0x6000, 0x1500) not in image
    assert not [tag for tag in image.keys() if tag.group == 0x6002]  # noqa: SIM118
