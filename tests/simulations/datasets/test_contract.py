"""What every loader must hold, on small files written in the official layouts."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset
from medfed.client.data.store import Store
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection

sys.path.insert(0, str(Path(__file__).parent))

import layouts_core
import layouts_other
import layouts_radiology

Case = layouts_core.Case | layouts_other.Case
CASES: dict[str, Case] = {
    **layouts_core.CASES,
    **layouts_radiology.CASES,
    **layouts_other.CASES,
}


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


@pytest.fixture(params=CASES, scope="class")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def _rewrite_image(path: Path) -> None:
    """Change one byte of what the file decodes to."""
    if path.suffix in (".raw", ".dcm"):
        # The last byte of both is one of a voxel.
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return
    if path.name.endswith(".nii.gz"):
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[0, 0, 0] += 1
        nib.save(nib.Nifti1Image(values, image.affine), path)
        return
    with Image.open(path) as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


class TestLoader:
    @pytest.fixture
    def folder(self, case: Case, tmp_path: Path) -> Path:
        case.write(tmp_path / "data")
        return tmp_path / "data"

    def test_loader_fills_every_field(self, case: Case, folder: Path) -> None:
        dataset = case.load(folder)
        assert dataset.name
        assert re.fullmatch(r"\w.{4,}", dataset.licence)
        assert re.search(r"\b20[0-2]\d\b", dataset.citation)
        assert re.fullmatch("[0-9a-f]{64}", dataset.digest)
        assert dataset.classes or dataset.structures
        ids = [record.record_id for record in dataset.records]
        assert len(set(ids)) == len(ids) > 0
        for record in dataset.records:
            assert record.patient_id
            assert record.source
            assert set(record.labels) <= set(dataset.classes)
            assert record.split in (None, "train", "test")
            assert all(isinstance(value, str) for value in record.columns.values())
        # A natural partition needs the same columns everywhere.
        assert len({frozenset(record.columns) for record in dataset.records}) == 1

    def test_loader_reads_pixels_masks_and_views_as_the_contract_says(
        self, case: Case, folder: Path
    ) -> None:
        dataset = case.load(folder)
        for record in dataset.records:
            pixels = record.read_image()
            assert pixels.dtype in (np.uint8, np.float32)
            assert 0 <= pixels.min() < pixels.max() <= 255
            grey = case.channels == 1 or bool(case.views)
            assert pixels.shape[dataset.dimensions :] == (() if grey else (case.channels,))
            for reader in list(record.views.values())[:1]:
                np.testing.assert_array_equal(reader(), pixels)
            assert set(record.views) <= set(case.views)
            if record.read_mask is not None:
                mask = record.read_mask()
                assert mask.dtype == np.uint8
                num = len(dataset.structures)
                assert mask.max() <= (2**num - 1 if case.overlapping else num)
                assert mask.ndim == dataset.dimensions
                if dataset.dimensions == 3:
                    assert mask.shape == pixels.shape[:3]
            if dataset.dimensions == 3:
                assert record.spacing_mm is not None
        if dataset.structures:
            masks = [r.read_mask() for r in dataset.records if r.read_mask is not None]
            found = {int(value) for mask in masks for value in np.unique(mask)}
            if case.overlapping:
                found = {0} | {i + 1 for i in range(8) for value in found if value >> i & 1}
            assert found == set(range(len(dataset.structures) + 1))

    def test_loader_keeps_patients_on_one_side_of_an_official_split(
        self, case: Case, folder: Path
    ) -> None:
        records = case.load(folder).records
        sides: dict[str, set[str | None]] = {}
        for record in records:
            sides.setdefault(record.patient_id, set()).add(record.split)
        assert all(len(own) == 1 for own in sides.values())

    def test_loader_gives_a_multiclass_task_one_label_an_image(
        self, case: Case, folder: Path
    ) -> None:
        dataset = case.load(folder)
        if case.multilabel or not dataset.classes:
            pytest.skip("labels of this data set are any number, or none")
        assert {len(record.labels) for record in dataset.records} == {1}

    def test_loader_repeats_digest_records_and_pixels_wherever_the_folder_is(
        self, case: Case, folder: Path
    ) -> None:
        first = case.load(folder)
        pixels = [record.read_image() for record in first.records]
        shutil.move(folder, folder.with_name("elsewhere"))
        second = case.load(folder.with_name("elsewhere"))
        assert second.digest == first.digest
        for before, again, image in zip(first.records, second.records, pixels, strict=True):
            names = ("record_id", "patient_id", "labels", "source", "split", "columns", "report")
            for name in names:
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
        if case.picture:
            _rewrite_image(folder / case.picture)
        else:
            _change_array(folder)
        assert case.load(folder).digest != before

    def test_loader_ignores_an_extra_file(self, case: Case, folder: Path) -> None:
        before = case.load(folder)
        (folder / "README.md").write_text("mine")
        Image.new("RGB", (4, 4)).save(folder / "extra.jpg")
        after = case.load(folder)
        assert after.digest == before.digest
        assert len(after.records) == len(before.records)

    def test_loader_refuses_a_changed_header(self, case: Case, folder: Path) -> None:
        if case.header is not None:
            name, text, other = case.header
            content = (folder / name).read_text()
            assert text in content
            (folder / name).write_text(content.replace(text, other, 1))
        elif case.picture:
            pytest.skip("this data set has no table")
        else:
            _rename_array(folder)
        with pytest.raises(DataError, match=r"expected the (columns|arrays|keys)") as caught:
            case.load(folder)
        assert not isinstance(caught.value, UnreadableImageError)

    def test_loader_keeps_a_damaged_image_as_a_record_that_is_quarantined(
        self, case: Case, folder: Path
    ) -> None:
        if not case.picture:
            pytest.skip("all records share one file")
        whole = case.load(folder)
        path = folder / case.picture
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        dataset = case.load(folder)
        assert [r.record_id for r in dataset.records] == [r.record_id for r in whole.records]
        store = self._store(case, dataset, folder)
        assert (store.num_quarantined, len(store)) == (1, len(dataset.records) - 1)
        quarantine = (store.folder / "quarantine.jsonl").read_text()
        assert path.name in quarantine

    @pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
    def test_loader_says_what_to_place_where_when_files_are_missing(
        self, case: Case, tmp_path: Path, there: bool
    ) -> None:
        folder = tmp_path / "nothing"
        if there:
            folder.mkdir()
        with pytest.raises(DataError, match=r"Download|Clone") as caught:
            case.load(folder)
        assert str(folder) in str(caught.value)
        assert "https://" in str(caught.value)
        assert "--data" in str(caught.value)

    def test_loader_feeds_a_store(self, case: Case, folder: Path) -> None:
        dataset = case.load(folder)
        store = self._store(case, dataset, folder)
        assert store.num_quarantined == 0
        assert len(store) == len(dataset.records)
        assert len(set(store.patients)) == len({r.patient_id for r in dataset.records})

    @staticmethod
    def _store(case: Case, dataset: SourceDataset, folder: Path) -> Store:
        return prepare_store(
            dataset,
            case.task(dataset),
            DataSection(
                image_size=16,
                channels=case.channels,
                dimensions=dataset.dimensions,
                views=case.views,
            ),
            parent=folder.parent / "stores",
            pseudonym_key=b"k" * 32,
        )
