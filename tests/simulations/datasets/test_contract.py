"""What every loader must hold, on small files written in the official layouts."""

import dataclasses
import json
import re
import shutil
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
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.busi import load_busi
from medfed.simulations.datasets.chase_db1 import load_chase_db1
from medfed.simulations.datasets.covid_chestxray import load_covid_chestxray
from medfed.simulations.datasets.ham10000 import load_ham10000
from medfed.simulations.datasets.iu_xray import load_iu_xray
from medfed.simulations.datasets.lgg import load_lgg
from medfed.simulations.datasets.medmnist import load_medmnist
from medfed.simulations.datasets.msd import load_msd


def _write_picture(path: Path, seed: int, *channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (20, 24, *channels), dtype=np.uint8)).save(path)


def _write_mask(path: Path, *, empty: bool = False, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 24), dtype=np.uint8)
    if not empty:
        mask[5:9, 6:12] = 255
    Image.fromarray(mask).convert(mode).save(path)


def write_ham10000(folder: Path) -> None:
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for number, dx in enumerate(("nv", "nv", "mel", "bkl", "df", "vasc")):
        image_id = f"ISIC_{9 - number:07d}"
        lines.append(f"HAM_{number // 2},{image_id},{dx},histo,5{number}.0,male,back,rosendahl")
        _write_picture(folder / "images" / f"{image_id}.jpg", number, 3)
        _write_mask(folder / "masks" / f"{image_id}_segmentation.png")
    (folder / "HAM10000_metadata").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pneumoniamnist(folder: Path) -> None:
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, number in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(number, dtype=np.uint8) % 2)[:, None]
    np.savez_compressed(folder / "pneumoniamnist.npz", **arrays)


LGG_COLUMNS = (
    "Patient,RNASeqCluster,MethylationCluster,miRNACluster,CNCluster,RPPACluster,"
    "OncosignCluster,COCCluster,histological_type,neoplasm_histologic_grade,tumor_tissue_site,"
    "laterality,tumor_location,gender,age_at_initial_pathologic,race,ethnicity,death01"
)


def write_lgg(folder: Path) -> None:
    root = folder / "kaggle_3m"
    lines = [LGG_COLUMNS]
    for seed, case in enumerate(("TCGA_CS_1234_20010101", "TCGA_DU_A5TR_19970726")):
        for number in (2, 10):
            name = f"{case}_{number}"
            _write_picture(root / case / f"{name}.tif", 10 * seed + number, 3)
            _write_mask(root / case / f"{name}_mask.tif", empty=number == 2)
        lines.append(case.rpartition("_")[0] + ",1,2,,4,5,6,7,8,1,1,1,1,2,50,3,2,0")
    (root / "data.csv").write_text("\n".join(lines) + "\n")


def write_msd(folder: Path) -> None:
    root = folder / "Task04_Hippocampus"
    names = ["hippocampus_001.nii.gz", "hippocampus_002.nii.gz"]
    for seed, name in enumerate(names):
        values = np.random.default_rng(seed).normal(900, 200, (6, 7, 5)).astype(np.float32)
        labels = np.zeros(values.shape, dtype=np.uint8)
        labels[2:4, 3:5, 2:4] = [[[1]], [[2]]]
        for kind, array in (("imagesTr", values), ("labelsTr", labels)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / kind / name)
    description = {
        "name": "Hippocampus",
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
    }
    (root / "dataset.json").write_text(json.dumps(description))


def write_chase_db1(folder: Path) -> None:
    for seed, name in enumerate(("Image_01L", "Image_01R", "Image_02L")):
        _write_picture(folder / "CHASEDB1" / f"{name}.jpg", seed, 3)
        for observer in ("1stHO", "2ndHO"):
            _write_mask(folder / "CHASEDB1" / f"{name}_{observer}.png", mode="1")


def write_busi(folder: Path) -> None:
    root = folder / "Dataset_BUSI_with_GT"
    for seed, label in enumerate(("normal", "benign", "malignant")):
        for number in (1, 12):
            path = root / label / f"{label} ({number}).png"
            _write_picture(path, 100 * seed + number)
            _write_mask(path.with_name(f"{path.stem}_mask.png"), empty=label == "normal")


def write_covid_chestxray(folder: Path) -> None:
    lines = [
        "patientid,offset,sex,age,finding,view,modality,date,location,folder,filename,license,"
        "clinical_notes,other_notes,"
    ]
    for number, (finding, view, modality) in enumerate(
        [
            ("Pneumonia/Viral/COVID-19", "PA", "X-ray"),
            ("No Finding", "L", "X-ray"),
            ('"COVID-19, ARDS"', "AP Supine", "X-ray"),
            ("COVID-19", "Axial", "CT"),
        ]
    ):
        lines.append(
            f"{number // 2},0,F,50,{finding},{view},{modality},2020,Spain,images,{number}.png,"
            "CC BY,A note,,"
        )
        _write_picture(folder / "images" / f"{number}.png", number)
        _write_mask(folder / "annotations/semantic_masks_v7labs_lungs" / f"{number}.png")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def write_iu_xray(folder: Path) -> None:
    reports = ["uid,MeSH,Problems,image,indication,comparison,findings,impression"]
    projections = ["uid,filename,projection"]
    for uid, problems in ((1, "normal"), (2, "Opacity;Lung"), (30, "Cardiomegaly")):
        reports.append(f"{uid},{problems},{problems},,,,Findings {uid}.,Impression {uid}.")
        for number, view in ((1001, "Frontal"), (2001, "Lateral")):
            name = f"{uid}_IM-0001-{number}.dcm.png"
            projections.append(f"{uid},{name},{view}")
            if (uid, view) != (30, "Lateral"):
                _write_picture(folder / "images/images_normalized" / name, uid + number)
    (folder / "indiana_reports.csv").write_text("\n".join(reports) + "\n")
    (folder / "indiana_projections.csv").write_text("\n".join(projections) + "\n")


@dataclasses.dataclass(frozen=True)
class Case:
    """How a loader's files are written, damaged and changed, and what task they serve."""

    write: Callable[[Path], None]
    load: Callable[[Path], SourceDataset]
    picture: str  # a file that one record reads; "" if all records share one
    header: tuple[str, str, str] | None = None  # a file, a text in it and what replaces it
    segmentation: bool = False
    multilabel: bool = False
    views: tuple[str, ...] = ()

    def task(self, dataset: SourceDataset) -> TaskSection:
        if self.segmentation:
            return TaskSection(type="segmentation", classes=dataset.structures)
        mode = "multilabel" if self.multilabel else "multiclass"
        return TaskSection(classes=dataset.classes, mode=mode)


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
    "ham10000": Case(
        write_ham10000,
        load_ham10000,
        "images/ISIC_0000004.jpg",
        ("HAM10000_metadata", "lesion_id", "lesion"),
    ),
    "medmnist": Case(
        write_pneumoniamnist,
        lambda folder: load_medmnist("pneumoniamnist", folder, folder / "cache"),
        "",
    ),
    "lgg": Case(
        write_lgg,
        load_lgg,
        "kaggle_3m/TCGA_CS_1234_20010101/TCGA_CS_1234_20010101_10.tif",
        ("kaggle_3m/data.csv", "Patient", "patient"),
    ),
    "msd": Case(
        write_msd,
        load_msd,
        "Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz",
        ("Task04_Hippocampus/dataset.json", '"labels"', '"structures"'),
        segmentation=True,
    ),
    "chase_db1": Case(write_chase_db1, load_chase_db1, "CHASEDB1/Image_01L.jpg", segmentation=True),
    "busi": Case(write_busi, load_busi, "Dataset_BUSI_with_GT/benign/benign (12).png"),
    "covid_chestxray": Case(
        write_covid_chestxray,
        load_covid_chestxray,
        "images/1.png",
        ("metadata.csv", "finding", "findings"),
        multilabel=True,
    ),
    "iu_xray": Case(
        write_iu_xray,
        load_iu_xray,
        "images/images_normalized/2_IM-0001-2001.dcm.png",
        ("indiana_reports.csv", "uid", "id"),
        multilabel=True,
        views=("frontal", "lateral"),
    ),
}


@pytest.fixture(params=CASES, scope="class")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def _rewrite_image(path: Path) -> None:
    """Change one byte of what the file decodes to."""
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
        assert "CC BY" in dataset.licence
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
            assert pixels.ndim == dataset.dimensions or pixels.shape[dataset.dimensions :] == (3,)
            for reader in list(record.views.values())[:1]:
                np.testing.assert_array_equal(reader(), pixels)
            assert set(record.views) <= set(case.views)
            if record.read_mask is not None:
                mask = record.read_mask()
                assert mask.dtype == np.uint8
                assert mask.max() <= len(dataset.structures)
                assert mask.ndim == dataset.dimensions
                if dataset.dimensions == 3:
                    assert mask.shape == pixels.shape[:3]
            if dataset.dimensions == 3:
                assert record.spacing_mm is not None
        if dataset.structures:
            masks = [r.read_mask() for r in dataset.records if r.read_mask is not None]
            found = {int(value) for mask in masks for value in np.unique(mask)}
            assert found == set(range(len(dataset.structures) + 1))

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
        colour = case.write in (write_chase_db1, write_lgg, write_ham10000)
        return prepare_store(
            dataset,
            case.task(dataset),
            DataSection(
                image_size=16,
                channels=3 if colour else 1,
                dimensions=dataset.dimensions,
                views=case.views,
            ),
            parent=folder.parent / "stores",
            pseudonym_key=b"k" * 32,
        )
