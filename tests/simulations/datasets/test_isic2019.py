import csv
import logging
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.isic2019 import CENTERS, CLASSES, load_isic2019

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import ISIC_CLASSES, write_csv, write_isic2019, write_picture

TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
INPUT = "ISIC_2019_Training_Input"


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_isic2019_keys_patients_by_lesion_and_gives_flambys_centers(tmp_path: Path) -> None:
    write_isic2019(tmp_path)
    dataset = load_isic2019(tmp_path)
    assert [r.record_id for r in dataset.records][:3] == [f"ISIC_{i:07d}" for i in range(3)]
    assert Counter(r.columns["center"] for r in dataset.records) == {
        "": 1,
        **dict.fromkeys(CENTERS, 2),
    }
    assert Counter(Counter(r.patient_id for r in dataset.records).values()) == {2: 6, 1: 1}
    assert dataset.records[2].patient_id == "HAM_0000001"
    labels = [r.labels[0] for r in dataset.records[::2]]
    assert labels == [*CLASSES[:6], "NV"]
    assert dataset.records[0].columns == {
        "center": "BCN",
        "age_approx": "55",
        "anatom_site_general": "anterior torso",
        "sex": "female",
    }
    assert dataset.records[-1].patient_id == "ISIC_0099999"
    assert dataset.records[0].source == f"{TRUTH} line 2 (ISIC_0000000.jpg)"


def test_isic2019_has_the_same_centers_without_flambys_file(tmp_path: Path) -> None:
    write_isic2019(tmp_path)
    with_folds = load_isic2019(tmp_path)
    (tmp_path / "train_test_split").unlink()
    without = load_isic2019(tmp_path)
    assert [r.columns for r in without.records] == [r.columns for r in with_folds.records]
    assert {r.split for r in without.records} == {None}
    assert {r.split for r in with_folds.records} == {"train", None}
    (tmp_path / "HAM10000_metadata").unlink()
    unknown = Counter(r.columns["center"] for r in load_isic2019(tmp_path).records)
    assert unknown == {"": 1, "BCN": 2, "MSK": 2, "HAM": 8}


def test_isic2019_trains_on_lesions_that_flamby_has_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_isic2019(tmp_path, lesions_per_center=3)
    text = (tmp_path / "train_test_split").read_text()
    line = next(line for line in text.splitlines() if ",test," in line)
    (tmp_path / "train_test_split").write_text(text.replace(line, line.replace("test", "train")))
    with caplog.at_level(logging.WARNING):
        records = load_isic2019(tmp_path).records
    sides = defaultdict(set)
    for record in records:
        sides[record.patient_id].add(record.split)
    assert all(len(own) == 1 for own in sides.values())
    assert Counter(r.split for r in records) == {"train": 26, "test": 10, None: 1}
    assert "1 of their image(s) move to train" in caplog.text


def test_isic2019_joins_an_image_and_its_downsampled_copy(tmp_path: Path) -> None:
    write_isic2019(tmp_path)
    row = ",".join(["1.0"] + ["0.0"] * 8)
    for name in ("ISIC_0000500", "ISIC_0000500_downsampled"):
        with (tmp_path / TRUTH).open("a") as file:
            file.write(f"{name},{row}\n")
    with (tmp_path / METADATA).open("a") as file:
        file.write("ISIC_0000500,,,MSK4_0009999,\nISIC_0000500_downsampled,,,,\n")
    write_picture(tmp_path / INPUT / "ISIC_0000500.jpg", 1, 3)
    records = {r.record_id: r for r in load_isic2019(tmp_path).records}
    both = (records["ISIC_0000500"], records["ISIC_0000500_downsampled"])
    assert {record.patient_id for record in both} == {"MSK4_0009999"}
    # Some copies have the ending cut off: one file serves both names.
    assert both[1].read_image().shape == (20, 24, 3)


def test_isic2019_finds_kaggles_nested_folder(tmp_path: Path) -> None:
    write_isic2019(tmp_path / "ISIC_2019")
    inner = tmp_path / "ISIC_2019" / INPUT
    inner.rename(tmp_path / "moved")
    inner.mkdir()
    (tmp_path / "moved").rename(inner / INPUT)
    assert all(r.read_image().shape == (20, 24, 3) for r in load_isic2019(tmp_path).records)


def test_isic2019_warns_of_what_does_not_match(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_isic2019(tmp_path)
    write_picture(tmp_path / INPUT / "ISIC_0088888.jpg", 1, 3)
    (tmp_path / INPUT / "ISIC_0000003.jpg").unlink()
    text = (tmp_path / METADATA).read_text()
    (tmp_path / METADATA).write_text(text.replace("ISIC_0000001,55", "ISIC_7777777,55"))
    with caplog.at_level(logging.WARNING):
        records = load_isic2019(tmp_path).records
    assert "1 image(s) have no row in the ground truth" in caplog.text
    assert "1 image(s) have no row in the metadata" in caplog.text
    assert "2 image(s) have no lesion" in caplog.text
    with pytest.raises(UnreadableImageError, match=r"ISIC_0000003\.jpg.*found none"):
        records[3].read_image()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            TRUTH,
            "ISIC_0000002,0.0,1.0",
            "ISIC_0000002,0.0,0.0",
            "GroundTruth.csv line 4: expected 1",
        ),
        (TRUTH, "ISIC_0000002,0.0,1.0", "ISIC_0000002,1.0,1.0", "GroundTruth.csv line 4"),
        (TRUTH, "ISIC_0000002,0.0,1.0", "ISIC_0000002,0.3,1.0", "GroundTruth.csv line 4"),
        (TRUTH, "ISIC_0000002,0.0,1.0", "ISIC_0000002,no,1.0", "GroundTruth.csv line 4"),
        (TRUTH, "ISIC_0000002", "ISIC_0000001", "line 4, column image: ISIC_0000001 is also in"),
        (METADATA, "ISIC_0000002,", "ISIC_0000001,", "line 4, column image"),
        (
            "train_test_split",
            "0,train,train_0",
            "6,train,train_6",
            "line 2: expected center 0 to 5",
        ),
        ("train_test_split", "0,train,train_0", "0,val,val_0", "'val'. Fetch FLamby's"),
        ("train_test_split", "center", "centre", "expected the columns image, center, fold"),
        ("HAM10000_metadata", "dataset", "clinic", "expected the columns image_id, dataset"),
    ],
)
def test_isic2019_refuses_malformed_tables(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    write_isic2019(tmp_path)
    _edit(tmp_path / name, old, new)
    with pytest.raises(DataError, match=message) as caught:
        load_isic2019(tmp_path)
    assert name in str(caught.value)


def test_isic2019_keeps_an_unknown_label_for_the_store_to_refuse(tmp_path: Path) -> None:
    write_isic2019(tmp_path)
    _edit(tmp_path / TRUTH, "ISIC_0099999,0.0,1.0", "ISIC_0099999,0.0,0.0")
    text = (tmp_path / TRUTH).read_text().rstrip()
    (tmp_path / TRUTH).write_text(text.removesuffix("0.0") + "1.0\n")
    dataset = load_isic2019(tmp_path)
    assert dataset.records[-1].labels == ("UNK",)
    assert "UNK" not in dataset.classes == CLASSES


def test_isic2019_names_a_missing_metadata_file(tmp_path: Path) -> None:
    write_isic2019(tmp_path)
    (tmp_path / METADATA).unlink()
    with pytest.raises(DataError, match=r"Training_Metadata\.csv in .*isic-archive"):
        load_isic2019(tmp_path)


def test_isic2019_changes_digest_with_centers_and_folds(tmp_path: Path) -> None:
    write_isic2019(tmp_path)
    digests = [load_isic2019(tmp_path).digest]
    for name in ("train_test_split", "HAM10000_metadata", f"{INPUT}/ISIC_0000001.jpg"):
        (tmp_path / name).unlink()
        digests.append(load_isic2019(tmp_path).digest)
    assert len(set(digests)) == 4


def test_real_folds_of_flamby_agree_with_the_clinics_of_ham10000(
    real_ham10000: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """HAM10000 is a part of ISIC 2019: its real lesions, clinics and FLamby's real folds."""
    folds = real_ham10000 / "fed_isic2019_train_test_split.csv"
    with folds.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (real_ham10000 / "HAM10000_metadata").open(newline="") as file:
        ham = {row["image_id"]: row for row in csv.DictReader(file)}
    truth = [",".join([row["image"], *(row[name] for name in ISIC_CLASSES)]) for row in rows]
    write_csv(tmp_path / TRUTH, ",".join(("image", *ISIC_CLASSES)), truth)
    write_csv(
        tmp_path / METADATA,
        "image,age_approx,anatom_site_general,lesion_id,sex",
        [f"{row['image']},,,{ham[row['image']]['lesion_id']}," for row in rows],
    )
    (tmp_path / INPUT).symlink_to(real_ham10000 / "images")
    (tmp_path / "train_test_split").symlink_to(folds)
    with caplog.at_level(logging.WARNING):
        records = load_isic2019(tmp_path).records
    assert len(records) == 1451
    assert all(r.columns["center"] == f"HAM_{ham[r.record_id]['dataset']}" for r in records)
    # 125 of these lesions are on both sides of FLamby's folds; 137 are tested on alone.
    tested = {r.patient_id for r in records if r.split == "test"}
    trained = {r.patient_id for r in records if r.split == "train"}
    assert (len(tested), len(trained), tested & trained) == (137, 709 + 125, set())
    assert "FLamby's ISIC 2019 has patients on both sides" in caplog.text
    names = {"nv": "NV", "mel": "MEL", "bkl": "BKL", "df": "DF", "vasc": "VASC", "bcc": "BCC"}
    assert all(r.labels[0] == names.get(ham[r.record_id]["dx"], r.labels[0]) for r in records)
    assert records[0].read_image().shape == (150, 200, 3)
