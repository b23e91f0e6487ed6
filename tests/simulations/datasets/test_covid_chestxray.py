import csv
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.covid_chestxray import CLASSES, load_covid_chestxray

HEADER = "patientid,offset,sex,age,finding,view,modality,location,filename,license,clinical_notes,"
MASKS = "annotations/semantic_masks_v7labs_lungs"


def _row(filename: str, finding: str = "COVID-19", **changes: str) -> str:
    values = {
        "patientid": "7b",
        "offset": "",
        "sex": "M",
        "age": "",
        "finding": f'"{finding}"',
        "view": "PA",
        "modality": "X-ray",
        "location": '"Porto, Portugal "',
        "filename": filename,
        "license": "CC BY",
        "clinical_notes": '"fever (38\ufffdC), ""cough"""',
    }
    return ",".join({**values, **changes}.values()) + ","


def _write(root: Path, *rows: str) -> Path:
    (root / "images").mkdir(parents=True)
    (root / MASKS).mkdir(parents=True)
    text = "\n".join([HEADER, *rows]) + "\n"
    (root / "metadata.csv").write_text(text, encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        # Without its ending the format would not be known.
        with (root / "images" / row["filename"]).open("wb") as file:
            Image.new("RGB", (10, 8), (50, 60, 70)).save(file, "PNG")
    return root


def _write_mask(root: Path, name: str, *levels: int) -> None:
    mask = np.zeros((8, 10), dtype=np.uint8)
    mask[2, : len(levels)] = levels
    with (root / MASKS / name).open("wb") as file:
        Image.fromarray(mask).save(file, "PNG")


def test_covid_chestxray_reads_rows_with_notes_and_columns(tmp_path: Path) -> None:
    root = _write(tmp_path / "covid-chestxray-dataset", _row("b.jpg"), _row("a.png"))
    dataset = load_covid_chestxray(tmp_path)
    assert [r.record_id for r in dataset.records] == ["a.png", "b.jpg"]
    record = dataset.records[1]
    assert record.patient_id == "7b"
    assert record.source == "metadata.csv line 2 (b.jpg)"
    assert record.report == 'fever (38C), "cough"'
    assert record.columns == {
        "view": "PA",
        "sex": "M",
        "age": "",
        "location": "Porto, Portugal",
        "license": "CC BY",
    }
    assert record.read_image().shape == (8, 10)
    assert len(list((root / "images").iterdir())) == 2


@pytest.mark.parametrize(
    ("finding", "labels"),
    [
        ("COVID-19", ("Pneumonia", "Viral", "COVID-19")),
        ("Pneumonia/Viral/COVID-19", ("Pneumonia", "Viral", "COVID-19")),
        ("COVID-19, ARDS", ("Pneumonia", "Viral", "COVID-19", "ARDS")),
        ("ARDS", ("ARDS",)),
        ("Pneumonia/Viral/Herpes ", ("Pneumonia", "Viral", "Herpes")),
        (
            "Pneumonia/Bacterial/Staphylococcus/MRSA",
            ("Pneumonia", "Bacterial", "Staphylococcus", "MRSA"),
        ),
        (
            "Influenza, Streptococcus",
            ("Pneumonia", "Viral", "Influenza", "Bacterial", "Streptococcus"),
        ),
        ("Pneumonia", ("Pneumonia",)),
        ("No finding", ("No Finding",)),
        ("Tuberculosis", ("Tuberculosis",)),
        # Outside the tree: as written, for the store to refuse.
        ("Pneumonia/Viral/Measles", ("Pneumonia", "Viral", "Measles")),
        ("Measles", ("Measles",)),
    ],
)
def test_covid_chestxray_labels_are_the_parts_of_the_path(
    tmp_path: Path, finding: str, labels: tuple[str, ...]
) -> None:
    (record,) = load_covid_chestxray(_write(tmp_path, _row("a.png", finding))).records
    assert record.labels == labels


def test_covid_chestxray_takes_radiographs_with_a_finding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write(
        tmp_path,
        _row("pa.png"),
        _row("supine.png", view="AP Supine"),
        _row("lateral.png", view="L"),
        _row("unknown_view.png", view=""),
        _row("axial.png", view="Axial", modality="CT"),
        _row("coronal.png", view="Coronal"),
        _row("todo.png", "todo"),
        _row("unknown.png", "Unknown"),
        _row("empty.png", ""),
    )
    Image.new("L", (4, 4)).save(root / "images" / "extra.png")
    with caplog.at_level(logging.INFO):
        records = load_covid_chestxray(root).records
    assert [r.record_id for r in records] == [
        "lateral.png",
        "pa.png",
        "supine.png",
        "unknown_view.png",
    ]
    assert "2 row(s) are no radiographs" in caplog.text
    assert "3 radiograph(s) have no finding yet" in caplog.text
    assert "1 image(s) have no row" in caplog.text


def test_covid_chestxray_masks_are_lungs_without_what_lies_over_them(tmp_path: Path) -> None:
    root = _write(tmp_path, *(_row(name) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")))
    _write_mask(root, "a.jpg", 255, 127, 255, 1)
    _write_mask(root, "b.jpg")
    (root / MASKS / "d.jpg").write_bytes(b"damaged")
    lungs, empty, without, damaged = load_covid_chestxray(root).records
    assert lungs.read_mask is not None
    assert lungs.read_mask()[2, :4].tolist() == [1, 0, 1, 0]
    assert empty.read_mask is None
    assert without.read_mask is None
    assert damaged.read_mask is not None
    with pytest.raises(UnreadableImageError, match=r"d\.jpg cannot be decoded"):
        damaged.read_mask()


def test_covid_chestxray_reads_without_masks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write(tmp_path, _row("a.png"))
    (root / MASKS).rmdir()
    assert load_covid_chestxray(root).records[0].read_mask is None
    assert "no image has a lung mask" in caplog.text


def test_covid_chestxray_surfaces_a_missing_image_when_read(tmp_path: Path) -> None:
    root = _write(tmp_path, _row("a.png"))
    digest = load_covid_chestxray(root).digest
    (root / "images" / "a.png").unlink()
    dataset = load_covid_chestxray(root)
    assert dataset.digest != digest
    with pytest.raises(UnreadableImageError, match=r"Expected a\.png"):
        dataset.records[0].read_image()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((_row("a.png"), _row("a.png")), "line 3, column filename: a.png is also in line 2"),
        ((_row("a.png", patientid=""),), "line 2: column patientid is empty"),
        ((_row("a.png") + "more,",), "line 2: expected 12 values, got more"),
    ],
)
def test_covid_chestxray_refuses_malformed_metadata(
    tmp_path: Path, rows: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_covid_chestxray(_write(tmp_path, *rows))


def test_real_covid_chestxray_has_the_counts_of_its_table(
    real_covid_chestxray: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):  # another test may have asked for more
        dataset = load_covid_chestxray(real_covid_chestxray)
    assert caplog.text == ""
    with (real_covid_chestxray / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["modality"] == "X-ray"]
    # 68 images, 13 of them slices of CT; of 33 patients two have only those.
    assert len(dataset.records) == len(rows) == 68 - 13
    assert len({r.patient_id for r in dataset.records}) == len({r["patientid"] for r in rows}) == 31
    assert dict(Counter(label for r in dataset.records for label in r.labels)) == {
        "No Finding": 2,
        "Pneumonia": 53,
        "Viral": 37,
        "COVID-19": 37,
        "Bacterial": 8,
        "Streptococcus": 4,
        "Fungal": 3,
        "Pneumocystis": 3,
        "Lipoid": 2,
        "ARDS": 5,
    }
    assert sum("COVID-19" in row["finding"] for row in rows) == 37
    assert {label for r in dataset.records for label in r.labels} <= set(CLASSES)
    assert Counter(r.columns["view"] for r in dataset.records) == {
        "PA": 40,
        "AP": 10,
        "L": 4,
        "AP Supine": 1,
    }
    assert sum(bool(r.report) for r in dataset.records) == sum(
        bool(row["clinical_notes"]) for row in rows
    )
    texts = [*(r.report for r in dataset.records)]
    texts += [value for r in dataset.records for value in r.columns.values()]
    assert not any("\ufffd" in text for text in texts)
    assert any("38C" in text for text in texts)


def test_real_covid_chestxray_lungs_are_darker_than_what_is_between_them(
    real_covid_chestxray: Path,
) -> None:
    records = [r for r in load_covid_chestxray(real_covid_chestxray).records if r.read_mask]
    # 50 mask files, of which the 13 for slices of CT are empty.
    files = list((real_covid_chestxray / MASKS).iterdir())
    assert len(files) - 13 == len(records) == 37
    darker = []
    for record in records:
        assert record.read_mask is not None
        image, mask = record.read_image(), record.read_mask()
        assert image.shape == mask.shape
        assert 0.05 < mask.mean() < 0.6
        rows, columns = np.nonzero(mask)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        between = image[box][mask[box] == 0]
        darker.append(image[mask == 1].mean() < between.mean())
    assert np.mean(darker) > 0.9
