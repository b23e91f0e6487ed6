import csv
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.ham10000 import CLASSES, load_ham10000

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"


def _write(folder: Path, *lines: str, images: str = "images", header: str = HEADER) -> Path:
    (folder / images).mkdir(parents=True)
    text = "\n".join([header, *lines]) + "\n"
    (folder / "HAM10000_metadata").write_text(text, encoding="utf-8")
    for line in lines:
        fields = line.split(",")
        if len(fields) > 1 and fields[1]:
            _write_image(folder / images / f"{fields[1]}.jpg")
    return folder


def _write_image(path: Path) -> None:
    Image.new("RGB", (20, 15), (200, 150, 120)).save(path)


A = "HAM_1,ISIC_1,nv,histo,50.0,male,back,rosendahl"
B = "HAM_1,ISIC_2,nv,histo,50.0,male,back,rosendahl"
C = "HAM_2,ISIC_3,mel,consensus,,unknown,face,vidir_modern"


def test_ham10000_keys_patients_by_lesion_and_sorts_by_image(tmp_path: Path) -> None:
    dataset = load_ham10000(_write(tmp_path, C, B, A))
    assert [r.record_id for r in dataset.records] == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert [r.patient_id for r in dataset.records] == ["HAM_1", "HAM_1", "HAM_2"]
    assert dataset.records[2].labels == ("mel",)
    assert dataset.records[2].source == "HAM10000_metadata line 2 (ISIC_3.jpg)"
    assert dataset.records[2].split is None
    assert dataset.records[2].columns == {
        "dataset": "vidir_modern",
        "sex": "unknown",
        "age": "",
        "localization": "face",
        "dx_type": "consensus",
    }


def test_ham10000_reads_kaggle_layout_in_two_parts(tmp_path: Path) -> None:
    _write(tmp_path, A, B, images="HAM10000_images_part_1")
    (tmp_path / "HAM10000_metadata").rename(tmp_path / "HAM10000_metadata.csv")
    (tmp_path / "HAM10000_images_part_2").mkdir()
    moved = tmp_path / "HAM10000_images_part_2" / "ISIC_2.jpg"
    (tmp_path / "HAM10000_images_part_1" / "ISIC_2.jpg").rename(moved)
    dataset = load_ham10000(tmp_path)
    assert [r.read_image().shape for r in dataset.records] == [(15, 20, 3)] * 2


def test_ham10000_takes_older_metadata_without_clinics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _write(tmp_path, A.rpartition(",")[0], header=HEADER.rpartition(",")[0])
    dataset = load_ham10000(folder)
    assert "dataset" not in dataset.records[0].columns
    assert "no column dataset" in caplog.text


def test_ham10000_reads_tabs_windows_lines_and_byte_order_mark(tmp_path: Path) -> None:
    _write(tmp_path, A, C)
    text = (tmp_path / "HAM10000_metadata").read_text()
    (tmp_path / "HAM10000_metadata").unlink()
    table = text.replace(",", "\t").replace("\n", "\r\n")
    (tmp_path / "HAM10000_metadata.tab").write_bytes(b"\xef\xbb\xbf" + table.encode())
    assert [r.patient_id for r in load_ham10000(tmp_path).records] == ["HAM_1", "HAM_2"]


def test_ham10000_surfaces_missing_and_damaged_images_when_read(tmp_path: Path) -> None:
    folder = _write(tmp_path, A, B, C)
    (folder / "images" / "ISIC_1.jpg").unlink()
    whole = (folder / "images" / "ISIC_2.jpg").read_bytes()
    (folder / "images" / "ISIC_2.jpg").write_bytes(whole[: len(whole) // 2])
    missing, damaged, good = load_ham10000(folder).records
    with pytest.raises(UnreadableImageError, match=r"ISIC_1\.jpg.*found none"):
        missing.read_image()
    with pytest.raises(UnreadableImageError, match=r"ISIC_2\.jpg cannot be decoded"):
        damaged.read_image()
    assert good.read_image().shape == (15, 20, 3)


def test_ham10000_changes_digest_when_a_missing_image_or_mask_comes_back(tmp_path: Path) -> None:
    folder = _write(tmp_path, A, B)
    digests = [load_ham10000(folder).digest]
    (folder / "images" / "ISIC_1.jpg").unlink()
    digests.append(load_ham10000(folder).digest)
    (folder / "masks").mkdir()
    Image.new("L", (60, 45)).save(folder / "masks" / "ISIC_2_segmentation.png")
    digests.append(load_ham10000(folder).digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_ham10000_names_the_file_whatever_bytes_are_damaged(tmp_path: Path, suffix: str) -> None:
    folder = _write(tmp_path, A)
    (folder / "images" / "ISIC_1.jpg").unlink()
    path = folder / "images" / f"ISIC_1{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    refused = []
    for _ in range(300):
        content = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        try:
            load_ham10000(folder).records[0].read_image()
        except UnreadableImageError as error:
            refused.append(str(error))
    assert all(path.name in message for message in refused)
    assert len(refused) > 0


def test_ham10000_reads_masks_through_their_palette(tmp_path: Path) -> None:
    folder = _write(tmp_path, A, B, C)
    masks = folder / "HAM10000_segmentations_lesion_tschandl"
    masks.mkdir()
    lesion = np.zeros((45, 60), dtype=np.uint8)
    lesion[10:20, 20:30] = 255
    Image.fromarray(lesion).save(masks / "ISIC_1_segmentation.png")
    # As published for some: stored 0 is shown white, stored 255 black.
    inverted = Image.fromarray(255 - lesion).convert("P")
    inverted.putpalette([255 - index // 3 for index in range(768)])
    inverted.save(masks / "ISIC_2_segmentation.png")
    grey, palette, without = load_ham10000(folder).records
    for record in (grey, palette):
        assert record.read_mask is not None
        mask = record.read_mask()
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, lesion // 255)
    assert without.read_mask is None


def test_ham10000_warns_of_images_without_row_and_rows_without_mask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _write(tmp_path, A, B)
    for name in ("ISIC_8.jpg", "ISIC_9.jpg", "._ISIC_1.jpg"):
        _write_image(folder / "images" / name)
    (folder / "masks").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(load_ham10000(folder).records) == 2
    assert "2 image(s) have no row" in caplog.text
    assert "2 image(s) have no mask" in caplog.text


def test_ham10000_keeps_a_label_outside_the_seven(tmp_path: Path) -> None:
    dataset = load_ham10000(_write(tmp_path, A.replace("nv", "scc")))
    assert dataset.records[0].labels == ("scc",)
    assert "scc" not in dataset.classes == CLASSES


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((A, A), "line 3, column image_id: image ISIC_1 is also in line 2"),
        ((A, A.replace("HAM_1", "HAM_7")), "line 3, column lesion_id.*HAM_7 here and to HAM_1"),
        ((A, ",ISIC_2,nv,histo,50.0,male,back,rosendahl"), "line 3: column lesion_id is empty"),
        ((A, "HAM_1,,nv,histo,50.0,male,back,rosendahl"), "line 3: column image_id is empty"),
        (("HAM_1,ISIC_2,,histo,50.0,male,back,rosendahl",), "line 2: column dx is empty"),
        ((A, "HAM_1,ISIC_2,nv"), "line 3: expected 8 values, got fewer"),
        ((A, B + ",more"), "line 3: expected 8 values, got more"),
        ((A, 'HAM_1,ISIC_2,nv,"his"to,50.0,male,back,rosendahl'), "after line 2: not valid CSV"),
    ],
)
def test_ham10000_refuses_malformed_metadata(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    folder = _write(tmp_path, *lines)
    with pytest.raises(DataError, match=message) as caught:
        load_ham10000(folder)
    assert "HAM10000_metadata" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary", b"image_id,dx\nISIC_1,nv\n"])
def test_ham10000_refuses_other_files_as_metadata(tmp_path: Path, content: bytes) -> None:
    folder = _write(tmp_path, A)
    (folder / "HAM10000_metadata").write_bytes(content)
    with pytest.raises(DataError, match=r"expected (UTF-8|the columns)"):
        load_ham10000(folder)


def test_ham10000_refuses_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "HAM10000_metadata").write_text(f"{HEADER}\n{A}\n")
    with pytest.raises(DataError, match=r"images/.*10\.7910/DVN/DBW86T"):
        load_ham10000(tmp_path)


def test_ham10000_never_reads_outside_its_folder(tmp_path: Path) -> None:
    _write_image(tmp_path / "secret.jpg")
    folder = _write(tmp_path / "data", A)
    line = A.replace("ISIC_1", "../../secret")
    (folder / "HAM10000_metadata").write_text(f"{HEADER}\n{line}\n")
    record = load_ham10000(folder).records[0]
    with pytest.raises(UnreadableImageError):
        record.read_image()


def test_real_ham10000_has_the_published_counts(
    real_ham10000: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_ham10000(real_ham10000)
    assert caplog.text == ""
    assert len(dataset.records) == 1451
    assert len({r.patient_id for r in dataset.records}) == 971
    assert Counter(r.columns["dataset"] for r in dataset.records) == {
        "rosendahl": 399,
        "vidir_modern": 606,
        "vidir_molemax": 279,
        "vienna_dias": 167,
    }
    assert {label for r in dataset.records for label in r.labels} == set(CLASSES)
    with (real_ham10000 / "HAM10000_metadata").open(newline="") as file:
        lesion_of = {row["image_id"]: row["lesion_id"] for row in csv.DictReader(file)}
    assert {r.record_id: r.patient_id for r in dataset.records} == lesion_of
    assert dataset.records[0].read_image().shape == (150, 200, 3)


def test_real_ham10000_masks_show_the_lesion_and_not_its_surroundings(real_ham10000: Path) -> None:
    palette = []
    for record in load_ham10000(real_ham10000).records:
        path = real_ham10000 / "masks" / f"{record.record_id}_segmentation.png"
        with Image.open(path) as picture:
            if picture.mode == "P":
                palette.append(record)
    assert len(palette) == 59
    masks = [record.read_mask() for record in palette if record.read_mask is not None]
    assert all(mask.shape == (450, 600) for mask in masks)
    # Lesions are photographed in the middle: an inverted mask gives the opposite.
    assert np.mean([mask[200:250, 275:325].mean() for mask in masks]) > 0.9
    assert np.mean([mask[:20].mean() for mask in masks]) < 0.1


def test_ham10000_reports_an_image_that_may_not_be_read(tmp_path: Path) -> None:
    folder = _write(tmp_path, A)
    (folder / "images" / "ISIC_1.jpg").unlink()
    (folder / "images" / "ISIC_1.jpg").mkdir()
    with pytest.raises(UnreadableImageError, match="ISIC_1"):
        load_ham10000(folder).records[0].read_image()
