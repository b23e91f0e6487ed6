import sys
from pathlib import Path

import numpy as np
import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.duke_breast_mri import load_duke_breast_mri

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_csv, write_xlsx
from layouts_radiology import (
    DUKE_HEADER,
    DUKE_SIDES,
    duke_folder,
    duke_line,
    duke_uid,
    write_dicom,
    write_duke,
)

MAPPING = "Breast-Cancer-MRI-filepath_filename-mapping.csv"
DESCRIBED = "01-01-1990-NA-MRI BREAST-97538"


def _boxes(folder: Path, *values: str | int) -> None:
    write_xlsx(
        folder / "Annotation_Boxes.xlsx",
        [["Patient ID", *DUKE_SIDES], ["Breast_MRI_001", *values]],
    )


def test_duke_chooses_slices_in_and_away_from_the_box(tmp_path: Path) -> None:
    write_duke(tmp_path, 1, num_slices=60)
    _boxes(tmp_path, 4, 9, 6, 12, 20, 39)
    records = load_duke_breast_mri(tmp_path).records
    numbers = {
        label: [int(r.columns["slice"]) for r in records if r.labels == (label,)]
        for label in ("tumour", "no tumour")
    }
    assert len(numbers["tumour"]) == len(numbers["no tumour"]) == 8
    assert all(20 <= number <= 39 for number in numbers["tumour"])
    # Five slices away at least, on both sides.
    assert all(number <= 15 or number >= 44 for number in numbers["no tumour"])
    assert min(numbers["no tumour"]) < 15 < 44 < max(numbers["no tumour"])
    steps = np.diff(numbers["tumour"])
    assert steps.max() - steps.min() <= 1
    assert [r.record_id for r in records] == sorted(r.record_id for r in records)
    assert {r.patient_id for r in records} == {"Breast_MRI_001"}


def test_duke_draws_the_box_counted_from_1_on_tumour_slices_alone(tmp_path: Path) -> None:
    write_duke(tmp_path, 1)
    records = {r.columns["slice"]: r for r in load_duke_breast_mri(tmp_path).records}
    inside, outside = records["1"].read_mask, records["12"].read_mask
    assert inside is not None
    assert outside is not None
    expected = np.zeros((20, 24), dtype=np.uint8)
    expected[3:9, 5:12] = 1
    np.testing.assert_array_equal(inside(), expected)
    assert not outside().any()


def test_duke_scales_all_phases_by_the_first_after_contrast(tmp_path: Path) -> None:
    write_duke(tmp_path, 1)
    folder = tmp_path / "Duke-Breast-Cancer-MRI/Breast_MRI_001" / DESCRIBED
    post = np.full((20, 24), 100, dtype=np.uint16)
    post[:10] = 500
    pre = np.full((20, 24), 100, dtype=np.uint16)
    pre[:10] = 300
    write_dicom(folder / duke_folder("post_1") / "1-01.dcm", post)
    write_dicom(folder / duke_folder("pre") / "1-01.dcm", pre)
    record = load_duke_breast_mri(tmp_path).records[0]
    assert list(record.views) == ["post_1", "pre"]
    post_1, before = record.views["post_1"](), record.views["pre"]()
    assert (post_1[0, 0], post_1[-1, 0]) == (255, 0)
    # Half of what it takes up afterwards.
    assert (before[0, 0], before[-1, 0]) == (127.5, 0)
    np.testing.assert_array_equal(record.read_image(), post_1)


def test_duke_finds_files_under_either_name_and_with_fewer_zeros(tmp_path: Path) -> None:
    write_duke(tmp_path, 1)
    before = load_duke_breast_mri(tmp_path)
    patient = tmp_path / "Duke-Breast-Cancer-MRI" / "Breast_MRI_001"
    for view in ("pre", "post_1"):
        series = patient / "1.3.6.1.4.1" / duke_uid(view)
        series.parent.mkdir(exist_ok=True)
        (patient / DESCRIBED / duke_folder(view)).rename(series)
        for path in sorted(series.iterdir()):
            path.rename(path.with_name(path.name.replace("1-", "1-0")))
    (tmp_path / "manifest-1607053360376").mkdir()
    patient.parent.rename(tmp_path / "manifest-1607053360376" / patient.parent.name)
    assert load_duke_breast_mri(tmp_path).digest == before.digest


@pytest.mark.parametrize("name", ["post1", "post_1"])
def test_duke_takes_both_names_of_a_phase(tmp_path: Path, name: str) -> None:
    write_duke(tmp_path, 1)
    text = (tmp_path / MAPPING).read_text().replace("post_1", name)
    (tmp_path / MAPPING).write_text(text)
    assert len(load_duke_breast_mri(tmp_path).records) == 8


def test_duke_takes_scanners_from_metadata_and_goes_without(tmp_path: Path) -> None:
    write_duke(tmp_path, 2)
    records = load_duke_breast_mri(tmp_path).records
    assert {(r.patient_id, r.columns["manufacturer"]) for r in records} == {
        ("Breast_MRI_001", "SIEMENS"),
        ("Breast_MRI_002", "GE MEDICAL SYSTEMS"),
    }
    (tmp_path / "metadata.csv").unlink()
    records = load_duke_breast_mri(tmp_path).records
    assert {r.columns["manufacturer"] for r in records} == {""}


def test_duke_leaves_patients_without_images_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_duke(tmp_path, 2)
    (tmp_path / "Duke-Breast-Cancer-MRI" / "Breast_MRI_001").rename(tmp_path / "away")
    records = load_duke_breast_mri(tmp_path).records
    assert {r.patient_id for r in records} == {"Breast_MRI_002"}
    assert "1 patient(s) with a box have no images here" in caplog.text
    (tmp_path / "Duke-Breast-Cancer-MRI" / "Breast_MRI_002").rename(tmp_path / "too")
    with pytest.raises(DataError, match="Expected the images that"):
        load_duke_breast_mri(tmp_path)


def test_duke_needs_the_mapping_as_csv(tmp_path: Path) -> None:
    write_duke(tmp_path, 1)
    mapping = tmp_path / MAPPING
    mapping.rename(mapping.with_suffix(".xlsx"))
    with pytest.raises(DataError, match="save it as CSV"):
        load_duke_breast_mri(tmp_path)


@pytest.mark.parametrize("line", ["a,b,c", "DICOM_Images/Breast_MRI_001/post_1", "", '"a'])
def test_duke_refuses_another_mapping(tmp_path: Path, line: str) -> None:
    write_duke(tmp_path, 1)
    write_csv(tmp_path / MAPPING, DUKE_HEADER, [duke_line("Breast_MRI_001", "pre", 1), line])
    with pytest.raises(DataError, match=r"mapping\.csv line 3"):
        load_duke_breast_mri(tmp_path)


def test_duke_leads_out_of_no_folder(tmp_path: Path) -> None:
    write_duke(tmp_path / "data", 1)
    mapping = tmp_path / "data" / MAPPING
    text = mapping.read_text().replace(f"//{DESCRIBED}", "/../../../secret")
    mapping.write_text(text)
    secret = tmp_path / "secret" / duke_folder("post_1")
    secret.mkdir(parents=True)
    write_dicom(secret / "1-01.dcm", np.ones((20, 24), dtype=np.uint16))
    with pytest.raises(DataError, match="got none"):
        load_duke_breast_mri(tmp_path / "data")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((9, 4, 6, 12, 1, 2), "line 2: expected starts before ends"),
        ((0, 4, 6, 12, 1, 2), "line 2: expected starts before ends"),
        (("four", 9, 6, 12, 1, 2), "line 2, column Start Row: expected a number, got 'four'"),
    ],
)
def test_duke_refuses_boxes_that_are_none(
    tmp_path: Path, values: tuple[str | int, ...], message: str
) -> None:
    write_duke(tmp_path, 1)
    _boxes(tmp_path, *values)
    with pytest.raises(DataError, match=message):
        load_duke_breast_mri(tmp_path)


def test_duke_surfaces_boxes_and_phases_of_another_image(tmp_path: Path) -> None:
    write_duke(tmp_path, 1)
    _boxes(tmp_path, 4, 30, 6, 12, 1, 2)
    folder = tmp_path / "Duke-Breast-Cancer-MRI/Breast_MRI_001" / DESCRIBED
    write_dicom(folder / duke_folder("pre") / "1-01.dcm", np.ones((4, 4), dtype=np.uint16))
    record = load_duke_breast_mri(tmp_path).records[0]
    assert record.read_mask is not None
    with pytest.raises(UnreadableImageError, match="ends at row 30"):
        record.read_mask()
    with pytest.raises(UnreadableImageError, match=r"expected \[20, 24\] pixels"):
        record.views["pre"]()
    write_dicom(folder / duke_folder("post_1") / "1-01.dcm", np.ones((20, 24), dtype=np.uint16))
    with pytest.raises(UnreadableImageError, match="one grey value only"):
        record.read_image()
