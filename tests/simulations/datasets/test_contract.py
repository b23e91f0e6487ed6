"""What every loader must hold, on small files written in the official layouts."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.ham10000 import load_ham10000
from medfed.simulations.datasets.medmnist import load_medmnist


def write_ham10000(folder: Path) -> None:
    rng = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for number, dx in enumerate(("nv", "nv", "mel", "bkl", "df", "vasc")):
        image_id = f"ISIC_{9 - number:07d}"
        lines.append(f"HAM_{number // 2},{image_id},{dx},histo,5{number}.0,male,back,rosendahl")
        pixels = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.jpg")
        mask = np.zeros((45, 60), dtype=np.uint8)
        mask[10:20, 20:30] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{image_id}_segmentation.png")
    (folder / "HAM10000_metadata").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pneumoniamnist(folder: Path) -> None:
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, number in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(number, dtype=np.uint8) % 2)[:, None]
    np.savez_compressed(folder / "pneumoniamnist.npz", **arrays)


@dataclasses.dataclass(frozen=True)
class Case:
    write: Callable[[Path], None]
    load: Callable[[Path], SourceDataset]
    header: Callable[[Path], None]  # renames a column, or an array
    change: Callable[[Path], None]  # changes one pixel


def _rename_ham_column(folder: Path) -> None:
    file = folder / "HAM10000_metadata"
    file.write_text(file.read_text().replace("lesion_id", "lesion", 1))


def _change_ham_pixel(folder: Path) -> None:
    file = min((folder / "images").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)


def _edit_npz(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    file = folder / "pneumoniamnist.npz"
    with np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    edit(arrays)
    np.savez_compressed(file, **arrays)


def _rename_array(folder: Path) -> None:
    _edit_npz(folder, lambda arrays: arrays.update(validation_images=arrays.pop("val_images")))


def _change_array(folder: Path) -> None:
    def edit(arrays: dict[str, np.ndarray]) -> None:
        arrays["train_images"][0, 0, 0] ^= 1

    _edit_npz(folder, edit)


CASES = {
    "ham10000": Case(write_ham10000, load_ham10000, _rename_ham_column, _change_ham_pixel),
    "medmnist": Case(
        write_pneumoniamnist,
        lambda folder: load_medmnist("pneumoniamnist", folder, folder / "cache"),
        _rename_array,
        _change_array,
    ),
}


@pytest.fixture(params=CASES, scope="class")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


class TestLoader:
    @pytest.fixture
    def folder(self, case: Case, tmp_path: Path) -> Path:
        case.write(tmp_path / "data")
        return tmp_path / "data"

    def test_loader_fills_every_field(self, case: Case, folder: Path) -> None:
        dataset = case.load(folder)
        assert dataset.name
        assert "CC BY" in dataset.licence
        assert "Sci Data" in dataset.citation
        assert re.fullmatch("[0-9a-f]{64}", dataset.digest)
        ids = [record.record_id for record in dataset.records]
        assert len(set(ids)) == len(ids) > 0
        for record in dataset.records:
            assert record.patient_id
            assert record.source
            assert set(record.labels) <= set(dataset.classes)
            assert record.split in (None, "train", "test")
            assert all(isinstance(value, str) for value in record.columns.values())
            pixels = record.read_image()
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 2 or pixels.shape[2:] == (3,)

    def test_loader_repeats_digest_records_and_pixels_wherever_the_folder_is(
        self, case: Case, folder: Path
    ) -> None:
        first = case.load(folder)
        pixels = [record.read_image() for record in first.records]
        shutil.move(folder, folder.with_name("elsewhere"))
        second = case.load(folder.with_name("elsewhere"))
        assert second.digest == first.digest
        for before, again, image in zip(first.records, second.records, pixels, strict=True):
            for name in ("record_id", "patient_id", "labels", "source", "split", "columns"):
                assert getattr(before, name) == getattr(again, name)
            np.testing.assert_array_equal(again.read_image(), image)

    def test_loader_gives_each_reader_its_own_pixels(self, case: Case, folder: Path) -> None:
        record = case.load(folder).records[0]
        before = record.read_image().copy()
        changed = record.read_image()
        if changed.flags.writeable:
            changed[...] = 0
        np.testing.assert_array_equal(record.read_image(), before)

    def test_loader_changes_digest_when_a_pixel_changes(self, case: Case, folder: Path) -> None:
        before = case.load(folder).digest
        case.change(folder)
        assert case.load(folder).digest != before

    def test_loader_ignores_an_extra_file(self, case: Case, folder: Path) -> None:
        before = case.load(folder)
        (folder / "README.md").write_text("mine")
        Image.new("RGB", (4, 4)).save(folder / "extra.jpg")
        after = case.load(folder)
        assert after.digest == before.digest
        assert len(after.records) == len(before.records)

    def test_loader_refuses_a_changed_header(self, case: Case, folder: Path) -> None:
        case.header(folder)
        with pytest.raises(DataError, match=r"expected the (columns|arrays)") as caught:
            case.load(folder)
        assert not isinstance(caught.value, UnreadableImageError)

    @pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
    def test_loader_says_what_to_place_where_when_files_are_missing(
        self, case: Case, tmp_path: Path, there: bool
    ) -> None:
        folder = tmp_path / "nothing"
        if there:
            folder.mkdir()
        with pytest.raises(DataError, match="Download") as caught:
            case.load(folder)
        assert str(folder) in str(caught.value)
        assert "https://" in str(caught.value)
        assert "--data" in str(caught.value)

    def test_loader_feeds_a_store(self, case: Case, folder: Path) -> None:
        dataset = case.load(folder)
        store = prepare_store(
            dataset,
            TaskSection(classes=dataset.classes),
            DataSection(image_size=16),
            parent=folder.parent / "stores",
            pseudonym_key=b"k" * 32,
            strict=True,
        )
        assert len(store) == len(dataset.records)
        assert len(set(store.patients)) == len({r.patient_id for r in dataset.records})
