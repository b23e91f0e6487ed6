import json
import logging
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.client.data.prepare import prepare_store
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.refuge import STRUCTURES, load_refuge

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_disc, write_picture, write_refuge, write_xlsx

VAL_SHEET = "REFUGE-Validation400-GT/Fovea_locations.xlsx"
TEST_SHEET = "REFUGE-Test-GT/Glaucoma_label_and_Fovea_location.xlsx"


def _facts(folder: Path) -> dict[str, tuple[str, str | None, str]]:
    return {
        r.record_id: (r.labels[0], r.split, r.columns["camera"])
        for r in load_refuge(folder).records
    }


FACTS = {
    "g0001": ("Glaucoma", "train", "Zeiss Visucam 500"),
    "n0001": ("Non-Glaucoma", "train", "Zeiss Visucam 500"),
    "n0002": ("Non-Glaucoma", "train", "Zeiss Visucam 500"),
    "V0001": ("Glaucoma", "train", "Canon CR-2"),
    "V0002": ("Non-Glaucoma", "train", "Canon CR-2"),
    "T0001": ("Glaucoma", "test", "Canon CR-2"),
    "T0002": ("Non-Glaucoma", "test", "Canon CR-2"),
}


def test_refuge_labels_training_by_name_and_the_others_by_their_tables(tmp_path: Path) -> None:
    write_refuge(tmp_path)
    assert _facts(tmp_path) == FACTS
    records = load_refuge(tmp_path).records
    assert [r.record_id for r in records] == list(FACTS)
    assert all(r.patient_id == r.record_id for r in records)
    assert records[0].source == "train g0001.jpg"
    assert records[0].read_image().shape == (20, 24, 3)


def test_refuge_masks_are_two_regions_with_the_cup_in_the_disc(tmp_path: Path) -> None:
    write_refuge(tmp_path)
    dataset = load_refuge(tmp_path)
    assert dataset.structures == STRUCTURES == ("optic disc", "optic cup")
    expected = np.zeros((20, 24), dtype=np.uint8)
    expected[4:14, 5:17] = 1
    expected[7:11, 9:13] = 3
    for record in dataset.records:
        assert record.read_mask is not None
        np.testing.assert_array_equal(record.read_mask(), expected)
    store = prepare_store(
        dataset,
        TaskSection(type="segmentation", mode="multilabel", classes=STRUCTURES),
        DataSection(image_size=16, channels=3),
        parent=tmp_path / "stores",
        pseudonym_key=b"k" * 32,
    )
    assert (len(store), store.num_quarantined) == (7, 0)


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_refuge_reads_masks_of_other_bitmap_modes(tmp_path: Path, mode: str) -> None:
    write_refuge(tmp_path)
    path = tmp_path / "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp"
    with Image.open(path) as picture:
        other = picture.convert("RGB")
    other.quantize(8).save(path) if mode == "P" else other.save(path)
    with Image.open(path) as picture:
        assert picture.mode == mode
    record = load_refuge(tmp_path).records[0]
    assert record.read_mask is not None
    assert set(np.unique(record.read_mask())) == {0, 1, 3}


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 127, 255)])
def test_refuge_refuses_masks_that_were_renumbered(
    tmp_path: Path, values: tuple[int, int, int]
) -> None:
    write_refuge(tmp_path)
    mask = np.repeat(np.array(values, dtype=np.uint8), 100).reshape(20, 15)
    path = tmp_path / "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp"
    Image.fromarray(mask).save(path)
    record = load_refuge(tmp_path).records[0]
    assert record.read_mask is not None
    with pytest.raises(UnreadableImageError, match=r"g0001\.bmp: expected 0 for the cup, 128.*got"):
        record.read_mask()


def test_refuge_reads_the_archive_of_the_second_edition_without_its_own_parts(
    tmp_path: Path,
) -> None:
    write_refuge(tmp_path / "flat")
    train = tmp_path / "REFUGE2" / "Train"
    for source, target in (
        ("Training400", "REFUGE1-train/Training400"),
        ("Annotation-Training400/Disc_Cup_Masks", "REFUGE1-train/Disc_Cup_Masks"),
        ("REFUGE-Validation400", "REFUGE1-val/REFUGE-Validation400"),
        ("REFUGE-Validation400-GT/Disc_Cup_Masks", "REFUGE1-val/Disc_Cup_Masks"),
        (VAL_SHEET, "REFUGE1-val/Fovea_locations.xlsx"),
        ("Test400", "REFUGE1-test/Test400"),
        ("REFUGE-Test-GT/Disc_Cup_Masks", "REFUGE1-test/Disc_Cup_Masks"),
        (TEST_SHEET, "REFUGE1-test/Glaucoma_label_and_Fovea_location.xlsx"),
    ):
        (train / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "flat" / source, train / target)
    write_picture(tmp_path / "REFUGE2/Validation/Images/V0001.jpg", 1, 3)
    write_disc(tmp_path / "REFUGE2/Validation/Disc_Masks/V0001.png")
    write_picture(tmp_path / "REFUGE2/Test/refuge2-test/T0001.jpg", 1, 3)
    write_picture(tmp_path / "__MACOSX/Training400/g0001.jpg", 1, 3)
    assert _facts(tmp_path) == FACTS
    assert all(r.read_mask for r in load_refuge(tmp_path).records)


def test_refuge_reads_kaggles_copy(tmp_path: Path) -> None:
    for part, names in (
        ("train", ("g0001", "n0001")),
        ("val", ("V0001", "V0002")),
        ("test", ("T0001", "T0002")),
    ):
        index = {}
        for position, name in enumerate(names):
            write_picture(tmp_path / part / "Images" / f"{name}.jpg", position, 3)
            write_disc(tmp_path / part / "Masks" / f"{name}.png")
            index[str(position)] = {"ImgName": f"{name}.jpg", "Label": 1 - position, "Size_X": 24}
        (tmp_path / part / "index.json").write_text(json.dumps(index))
    assert _facts(tmp_path) == {name: FACTS[name] for name in FACTS if name != "n0002"}
    assert all(r.read_mask for r in load_refuge(tmp_path).records)
    (tmp_path / "val" / "index.json").write_text("[]")
    with pytest.raises(DataError, match=r"val/index\.json: expected the keys"):
        load_refuge(tmp_path)


def test_refuge_tests_on_the_last_part_that_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_refuge(tmp_path)
    (tmp_path / TEST_SHEET).unlink()
    with caplog.at_level(logging.WARNING):
        sides = Counter((r.columns["part"], r.split) for r in load_refuge(tmp_path).records)
    assert sides == {("train", "train"): 3, ("val", "test"): 2}
    assert "2 image(s) of val or test have no label" in caplog.text
    (tmp_path / VAL_SHEET).unlink()
    assert {r.split for r in load_refuge(tmp_path).records} == {None}


def test_refuge_surfaces_missing_images_when_read(tmp_path: Path) -> None:
    write_refuge(tmp_path)
    (tmp_path / "Training400" / "Glaucoma" / "g0001.jpg").unlink()
    (tmp_path / "Test400" / "T0002.jpg").unlink()
    records = {r.record_id: r for r in load_refuge(tmp_path).records}
    assert len(records) == 7
    for name in ("g0001", "T0002"):
        with pytest.raises(UnreadableImageError, match=rf"Expected {name}\.jpg of REFUGE's"):
            records[name].read_image()


def test_refuge_refuses_two_copies_below_one_folder(tmp_path: Path) -> None:
    write_refuge(tmp_path / "one")
    write_picture(tmp_path / "two" / "g0001.jpg", 1, 3)
    with pytest.raises(DataError, match=r"g0001\.jpg of REFUGE once.*one copy"):
        load_refuge(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((("ImgName", "Label"),), "line 1: expected the columns ImgName, Glaucoma Label"),
        ((("ImgName", "Glaucoma Label"), ("V0001.jpg", 2)), "line 2.*1 for glaucoma or 0, got '2'"),
        ((("ImgName", "Glaucoma Label"), ("V0001.jpg", "")), "line 2.*got ''"),
        ((("ImgName", "Glaucoma Label"), ("a.jpg", 1)), "line 2.*such as V0001.jpg, got 'a.jpg'"),
        (
            (("ImgName", "Glaucoma Label"), ("V0001.jpg", 1), ("V0001.jpg", 0)),
            "line 3.*Non-Glaucoma here and Glaucoma before",
        ),
    ],
)
def test_refuge_refuses_malformed_tables(
    tmp_path: Path, rows: tuple[tuple[str | int, ...], ...], message: str
) -> None:
    write_refuge(tmp_path)
    write_xlsx(tmp_path / VAL_SHEET, rows)
    with pytest.raises(DataError, match=message) as caught:
        load_refuge(tmp_path)
    assert "Fovea_locations.xlsx" in str(caught.value)


def test_refuge_changes_digest_with_a_mask_or_a_table(tmp_path: Path) -> None:
    write_refuge(tmp_path)
    digests = [load_refuge(tmp_path).digest]
    rows = [("ImgName", "Glaucoma Label"), ("V0001.jpg", 0), ("V0002.jpg", 0)]
    write_xlsx(tmp_path / VAL_SHEET, rows)
    digests.append(load_refuge(tmp_path).digest)
    (tmp_path / "REFUGE-Test-GT/Disc_Cup_Masks/G/T0001.bmp").unlink()
    digests.append(load_refuge(tmp_path).digest)
    assert len(set(digests)) == 3
