import csv
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.lgg import load_lgg

HEADER = (
    "Patient,RNASeqCluster,MethylationCluster,miRNACluster,CNCluster,RPPACluster,"
    "OncosignCluster,COCCluster,histological_type,neoplasm_histologic_grade,tumor_tissue_site,"
    "laterality,tumor_location,gender,age_at_initial_pathologic,race,ethnicity,death01"
)
CS = "TCGA_CS_4944_20010208"
DU = "TCGA_DU_A5TR_19970726"


def _write_slice(root: Path, case: str, number: int, *, lesion: bool = True) -> None:
    (root / case).mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[...] = (10, 20, number)
    Image.fromarray(pixels).save(root / case / f"{case}_{number}.tif")
    mask = np.zeros((16, 16), dtype=np.uint8)
    if lesion:
        mask[4:6, 8:10] = 255
    Image.fromarray(mask).save(root / case / f"{case}_{number}_mask.tif")


def _write(root: Path, *rows: str) -> Path:
    for case, numbers in ((CS, (11, 9, 100)), (DU, (5,))):
        for number in numbers:
            _write_slice(root, case, number, lesion=number != 9)
    rows = rows or (f"TCGA_CS_4944,{',' * 12}2,50,3,,0",)
    (root / "data.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return root


def test_lgg_orders_slices_by_number_and_joins_clinical_data(tmp_path: Path) -> None:
    dataset = load_lgg(_write(tmp_path))
    assert [r.record_id for r in dataset.records] == [
        f"{CS}_9",
        f"{CS}_11",
        f"{CS}_100",
        f"{DU}_5",
    ]
    assert [r.patient_id for r in dataset.records] == ["TCGA_CS_4944"] * 3 + ["TCGA_DU_A5TR"]
    first, second, _, other = dataset.records
    assert (first.labels, second.labels) == (("no lesion",), ("lesion",))
    assert first.source == f"{CS}/{CS}_9.tif"
    assert first.columns["institution"] == "CS"
    assert first.columns["slice"] == "9"
    assert first.columns["gender"] == "2"
    assert first.columns["age_at_initial_pathologic"] == "50"
    assert first.columns["ethnicity"] == ""
    # Without a row the columns are there, and empty.
    assert other.columns.keys() == first.columns.keys()
    assert (other.columns["institution"], other.columns["gender"]) == ("DU", "")
    assert tuple(second.read_image()[0, 0]) == (10, 20, 11)
    assert second.read_mask is not None
    assert second.read_mask().sum() == 4


@pytest.mark.parametrize("below", ["kaggle_3m", "lgg-mri-segmentation/kaggle_3m"])
def test_lgg_is_found_below_the_folder(tmp_path: Path, below: str) -> None:
    _write(tmp_path / below)
    assert len(load_lgg(tmp_path).records) == 4


def test_lgg_surfaces_slices_without_image_or_mask_when_read(tmp_path: Path) -> None:
    root = _write(tmp_path)
    (root / CS / f"{CS}_9.tif").unlink()
    (root / CS / f"{CS}_11_mask.tif").unlink()
    (root / CS / f"{CS}_100_mask.tif").write_bytes(b"damaged")
    records = load_lgg(root).records
    assert len(records) == 4
    for record, message in zip(
        records,
        (rf"Expected {CS}_9\.tif", rf"Expected {CS}_11_mask\.tif", r"_100_mask\.tif cannot be"),
        strict=False,
    ):
        # Whatever the label: the store must never see it.
        assert record.labels == ("no lesion",)
        with pytest.raises(UnreadableImageError, match=message):
            record.read_image()
    assert records[3].read_image().shape == (16, 16, 3)


def test_lgg_warns_of_other_files_and_patients_without_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write(tmp_path)
    for name in ("overview.tif", f"{DU}_7.tif", f"._{CS}_9.tif"):
        Image.new("RGB", (4, 4)).save(root / CS / name)
    with caplog.at_level(logging.WARNING):
        assert len(load_lgg(root).records) == 4
    assert "2 picture(s) are not named as slices" in caplog.text
    assert "1 patient(s) have no row" in caplog.text


def test_lgg_reads_without_clinical_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _write(tmp_path)
    with_table = load_lgg(root)
    (root / "data.csv").unlink()
    without = load_lgg(root)
    assert without.digest != with_table.digest
    assert without.records[0].columns.keys() == with_table.records[0].columns.keys()
    assert without.records[0].columns["gender"] == ""
    assert "no data.csv" in caplog.text


def test_lgg_refuses_a_patient_in_two_rows(tmp_path: Path) -> None:
    row = f"TCGA_CS_4944,{',' * 12}2,50,3,,0"
    with pytest.raises(DataError, match=r"data\.csv line 3, column Patient"):
        load_lgg(_write(tmp_path, row, row))


def test_real_lgg_has_the_published_counts(
    real_lgg: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Its README: 25 patients, 99 slices, 5 institutions, one patient at EZ, half the masks empty.
    dataset = load_lgg(real_lgg)
    assert caplog.text == ""
    assert len(dataset.records) == 99
    patients = {r.patient_id: r.columns["institution"] for r in dataset.records}
    assert len(patients) == 25
    # Counted with `ls kaggle_3m | cut -d_ -f2 | sort | uniq -c`.
    assert Counter(patients.values()) == {"CS": 5, "DU": 8, "EZ": 1, "FG": 4, "HT": 7}
    files = list((real_lgg / "kaggle_3m").glob("*/*_mask.tif"))
    bright = {path.stem.removesuffix("_mask"): max(Image.open(path).getdata()) for path in files}
    lesions = {r.record_id: r.labels == ("lesion",) for r in dataset.records}
    assert lesions == {name: highest == 255 for name, highest in bright.items()}
    assert Counter(lesions.values()) == {True: 50, False: 49}
    numbers = [int(r.columns["slice"]) for r in dataset.records if r.patient_id == "TCGA_CS_4944"]
    assert numbers == [5, 8, 11, 15]


def test_real_lgg_joins_every_patient_to_its_row(real_lgg: Path) -> None:
    with (real_lgg / "kaggle_3m" / "data.csv").open(newline="") as file:
        ages = {row["Patient"]: row["age_at_initial_pathologic"] for row in csv.DictReader(file)}
    found = {
        r.patient_id: r.columns["age_at_initial_pathologic"] for r in load_lgg(real_lgg).records
    }
    assert found == {patient: ages[patient] for patient in found}
    assert len(found) == 25


def test_real_lgg_masks_are_bright_in_flair(real_lgg: Path) -> None:
    # FLAIR is the second channel; its abnormality is what the masks segment.
    brighter = []
    for record in load_lgg(real_lgg).records:
        if record.labels == ("lesion",):
            assert record.read_mask is not None
            flair, mask = record.read_image()[..., 1].astype(float), record.read_mask()
            head = flair[(flair > 20) & (mask == 0)]
            brighter.append(flair[mask == 1].mean() > head.mean())
    assert np.mean(brighter) > 0.9
