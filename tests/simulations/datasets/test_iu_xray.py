import csv
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import DataError
from medfed.simulations.datasets.iu_xray import CLASSES, load_iu_xray
from medfed.simulations.datasets.iu_xray_reports import iu_xray_reports

KAGGLE = "images/images_normalized"


def _write_reports(root: Path, *rows: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression"
    (root / "indiana_reports.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def _write_projections(root: Path, *rows: str) -> None:
    (root / "indiana_projections.csv").write_text(
        "\n".join(["uid,filename,projection", *rows]) + "\n"
    )


def _write_annotation(root: Path, **parts: list[tuple[str, str]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    content = {
        "    " if part == "test" else part: [
            {"id": name, "report": text, "image_path": [f"{name}/0.png"], "split": part}
            for name, text in entries
        ]
        for part, entries in parts.items()
    }
    (root / "annotation.json").write_text(json.dumps(content))


def _write_picture(root: Path, name: str, level: int) -> None:
    """A picture that tells by its pixels which one it is."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 10), level).save(root / name)


def _levels(root: Path) -> dict[str, dict[str, int]]:
    return {
        record.record_id: {view: int(read()[0, 0]) for view, read in record.views.items()}
        for record in load_iu_xray(root).records
    }


def test_iu_xray_reads_examinations_that_have_a_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write_reports(
        tmp_path,
        "10,normal,normal,,,,Clear lungs.,No disease.",
        '9,Opacity/lung;Cardiomegaly/mild,Opacity;Cardiomegaly,,,,"Big heart,\nhazy.",',
        "8,normal,normal,,,,,",
    )
    _write_projections(root, "9,9_IM-0001-1001.dcm.png,Frontal", "10,10_IM-0002-1.dcm.png,Lateral")
    _write_picture(root, f"{KAGGLE}/9_IM-0001-1001.dcm.png", 9)
    _write_picture(root, f"{KAGGLE}/10_IM-0002-1.dcm.png", 10)
    _write_picture(root, f"{KAGGLE}/77_IM-0003-1.dcm.png", 77)
    with caplog.at_level(logging.WARNING):
        dataset = load_iu_xray(root)
    assert [r.record_id for r in dataset.records] == ["9", "10"]
    first, second = dataset.records
    assert first.patient_id == "9"
    assert first.report == "Big heart, hazy."
    assert second.report == "Clear lungs. No disease."
    assert first.labels == ("Opacity", "Cardiomegaly")
    assert first.columns == {
        "Problems": "Opacity;Cardiomegaly",
        "MeSH": "Opacity/lung;Cardiomegaly/mild",
    }
    assert first.source == "indiana_reports.csv line 4 (9_IM-0001-1001.dcm.png)"
    assert (list(first.views), list(second.views)) == (["frontal"], ["lateral"])
    # The only view there is, is the image.
    assert second.read_image()[0, 0] == 10
    assert "1 of 3 examinations have no picture" in caplog.text
    assert "Pictures of 1 examination(s) have no report" in caplog.text


def test_iu_xray_takes_the_first_picture_of_a_view_by_name(tmp_path: Path) -> None:
    root = _write_reports(tmp_path, "9,,,,,,A.,B.")
    views = {"1001": "Lateral", "1002": "Frontal", "1003": "Frontal", "1004": "Lateral"}
    _write_projections(
        root, *(f"9,9_IM-0001-{number}.dcm.png,{view}" for number, view in reversed(views.items()))
    )
    for number in views:
        _write_picture(root, f"{KAGGLE}/9_IM-0001-{number}.dcm.png", int(number[-1]))
    assert _levels(root) == {"9": {"frontal": 2, "lateral": 1}}
    (root / f"{KAGGLE}/9_IM-0001-1001.dcm.png").unlink()
    assert _levels(root) == {"9": {"frontal": 2, "lateral": 4}}


def test_iu_xray_maps_the_three_namings_of_one_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write_reports(tmp_path, "1,,,,,,A.,B.", "2,,,,,,A.,B.", "3,,,,,,A.,B.")
    _write_projections(
        root,
        *(
            f"{uid},{uid}_IM-0001-{number}.dcm.png,{view}"
            for uid in (1, 2, 3)
            for number, view in ((3001, "Lateral"), (4001, "Frontal"))
        ),
    )
    # The first examination has a second number in Open-i's names.
    _write_picture(root, "NLMCXR_png/CXR1_1_IM-0001-3001.png", 10)
    _write_picture(root, "NLMCXR_png/CXR1_1_IM-0001-4001.png", 11)
    # Kaggle's files go before Open-i's.
    _write_picture(root, f"{KAGGLE}/2_IM-0001-3001.dcm.png", 20)
    _write_picture(root, "NLMCXR_png/CXR2_IM-0001-3001.png", 21)
    _write_picture(root, "NLMCXR_png/CXR2_IM-0001-4001.png", 22)
    # R2Gen numbers them in the order of their names.
    _write_picture(root, "images/CXR3_IM-0001/0.png", 30)
    _write_picture(root, "images/CXR3_IM-0001/1.png", 31)
    assert _levels(root) == {
        "1": {"frontal": 11, "lateral": 10},
        "2": {"frontal": 22, "lateral": 20},
        "3": {"frontal": 31, "lateral": 30},
    }
    assert caplog.text == ""


def test_iu_xray_guesses_views_by_order_without_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _write_reports(tmp_path, "2,,,,,,A.,B.", "3,,,,,,A.,B.")
    for number in (1001, 2001, 3001):
        _write_picture(root, f"NLMCXR_png/CXR2_IM-0001-{number}.png", number // 1000)
    _write_picture(root, "images/CXR3_IM-0001-1001/1.png", 9)
    with caplog.at_level(logging.WARNING):
        assert _levels(root) == {"2": {"frontal": 1, "lateral": 2}, "3": {"lateral": 9}}
    assert "The views of 2 examination(s) are guessed" in caplog.text


def test_iu_xray_splits_as_r2gen_with_val_as_train(tmp_path: Path) -> None:
    root = _write_reports(tmp_path, *(f"{uid},,,,,,A.,B." for uid in (1, 2, 3, 4)))
    _write_annotation(
        root,
        train=[("CXR1_1_IM-0001", "A.")],
        val=[("CXR2_IM-0001-1001", "A.")],
        test=[("CXR3_IM-0001", "A.")],
    )
    for uid in (1, 2, 3, 4):
        _write_picture(root, f"images/CXR{uid}_IM-0001/0.png", uid)
    records = load_iu_xray(root).records
    assert [r.split for r in records] == ["train", "train", "test", None]
    assert [r.report for r in records] == ["A. B."] * 4


def test_iu_xray_has_no_labels_in_r2gens_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_annotation(tmp_path, train=[("CXR5_IM-0001", "Clear.")])
    _write_picture(tmp_path, "images/CXR5_IM-0001/0.png", 5)
    dataset = load_iu_xray(tmp_path)
    assert dataset.classes == ()
    assert dataset.records[0].labels == ()
    assert dataset.records[0].report == "Clear."
    assert "no examination has labels" in caplog.text


def test_iu_xray_changes_digest_with_text_view_and_split(tmp_path: Path) -> None:
    root = _write_reports(tmp_path, "1,,,,,,A.,B.")
    _write_projections(root, "1,1_IM-0001-1.dcm.png,Frontal")
    _write_picture(root, f"{KAGGLE}/1_IM-0001-1.dcm.png", 1)
    digests = [load_iu_xray(root).digest]
    _write_projections(root, "1,1_IM-0001-1.dcm.png,Lateral")
    digests.append(load_iu_xray(root).digest)
    _write_reports(root, "1,,,,,,A.,C.")
    digests.append(load_iu_xray(root).digest)
    _write_annotation(root, test=[("CXR1_IM-0001", "A.")])
    digests.append(load_iu_xray(root).digest)
    assert len(set(digests)) == 4


def test_iu_xray_refuses_texts_without_any_picture(tmp_path: Path) -> None:
    _write_reports(tmp_path, "1,,,,,,A.,B.")
    with pytest.raises(DataError, match=r"images/ or NLMCXR_png/ of .*--data"):
        load_iu_xray(tmp_path)


def test_iu_xray_leaves_out_an_examination_whose_picture_has_no_view(tmp_path: Path) -> None:
    root = _write_reports(tmp_path, "1,,,,,,A.,B.", "2,,,,,,A.,B.")
    _write_picture(root, "images/CXR1_IM-0001/2.png", 1)
    _write_picture(root, "images/CXR2_IM-0001/0.png", 2)
    assert _levels(root) == {"2": {"frontal": 2}}


def test_iu_xray_refuses_another_projection(tmp_path: Path) -> None:
    root = _write_reports(tmp_path, "1,,,,,,A.,B.")
    _write_picture(root, f"{KAGGLE}/1_IM-0001-1.dcm.png", 1)
    _write_projections(root, "1,1_IM-0001-1.dcm.png,Oblique")
    with pytest.raises(DataError, match=r"line 2, column projection.*'Oblique'"):
        load_iu_xray(root)


def test_real_iu_xray_finds_the_pictures_of_all_three_namings(
    real_iu_xray: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_iu_xray(real_iu_xray)
    # Its image_sources.csv lists the 12 pictures by uid; one is the third of examination 1000.
    with (real_iu_xray / "image_sources.csv").open(newline="") as file:
        counts = Counter(row["uid"] for row in csv.DictReader(file))
    assert counts == {"1000": 3, "54": 2, "7": 2, "368": 2, "1001": 1, "3": 2}
    assert {r.record_id: len(r.views) for r in dataset.records} == {**counts, "1000": 2}
    assert [r.record_id for r in dataset.records] == ["3", "7", "54", "368", "1000", "1001"]
    assert "2271 of 2277 examinations have no picture" in caplog.text
    assert "guessed" not in caplog.text
    assert {r.record_id: r.split for r in dataset.records} == {
        "3": None,  # has no findings, so R2Gen left it out
        "7": "train",
        "54": "train",
        "368": "test",
        "1000": "train",
        "1001": "train",
    }
    for record in dataset.records:
        assert all(read().ndim == 2 for read in record.views.values())


def test_real_iu_xray_frontal_views_are_more_symmetric_than_lateral_ones(
    real_iu_xray: Path,
) -> None:
    num_pairs = 0
    for record in load_iu_xray(real_iu_xray).records:
        similarity = {}
        for view, read in record.views.items():
            picture = Image.fromarray(read()).resize((32, 32), Image.Resampling.BOX)
            pixels = np.asarray(picture, dtype=float)
            similarity[view] = np.corrcoef(pixels.ravel(), pixels[:, ::-1].ravel())[0, 1]
        if len(similarity) == 2:
            num_pairs += 1
            assert similarity["frontal"] > similarity["lateral"] + 0.2
    assert num_pairs == 5


def test_real_iu_xray_classes_are_the_most_frequent_findings(real_iu_xray: Path) -> None:
    with (real_iu_xray / "indiana_reports.csv").open(newline="", encoding="utf-8") as file:
        rows = [set(row["Problems"].split(";")) for row in csv.DictReader(file)]
    counts = Counter(problem for row in rows for problem in row)
    places = {"Lung", "Thoracic Vertebrae", "Spine", "Aorta", "Diaphragm"}
    ranked = [name for name, _ in counts.most_common() if name not in places]
    assert tuple(ranked[: len(CLASSES)]) == CLASSES


def test_real_iu_xray_guess_of_views_is_as_good_as_stated(real_iu_xray: Path) -> None:
    with (real_iu_xray / "indiana_projections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    views: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["filename"]):
        views.setdefault(row["uid"], []).append(row["projection"])
    pairs = [own for own in views.values() if len(own) == 2]
    right = sum(own == ["Frontal", "Lateral"] for own in pairs)
    assert round(right / len(pairs), 2) == 0.89
    single = [own[0] for own in views.values() if len(own) == 1]
    assert round(single.count("Frontal") / len(single), 2) == 0.65


def test_real_iu_xray_texts_count_as_its_readme_says(real_iu_xray: Path) -> None:
    texts = iu_xray_reports(real_iu_xray)
    assert len(texts) == 2277
    assert sum(not text.findings for text in texts) == 289
    assert sum(not text.report for text in texts) == 12
    assert sum("XXXX" in text.findings for text in texts) == 858
    content = json.loads((real_iu_xray / "annotation.json").read_text())
    assert Counter(text.split for text in texts) == {
        "train": len(content["train"]) + len(content["val"]),
        "test": len(content["test"]),
        None: 2277 - sum(len(part) for part in content.values()),
    }
