"""Tiny files in the official layouts of the first data sets, and how the contract names a case.

`CASES` is what `test_contract.py` runs every loader on.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from medfed.client.data.records import SourceDataset
from medfed.common.study import TaskSection
from medfed.simulations.datasets.busi import load_busi
from medfed.simulations.datasets.chase_db1 import load_chase_db1
from medfed.simulations.datasets.covid_chestxray import load_covid_chestxray
from medfed.simulations.datasets.ham10000 import load_ham10000
from medfed.simulations.datasets.iu_xray import load_iu_xray
from medfed.simulations.datasets.lgg import load_lgg
from medfed.simulations.datasets.medmnist import load_medmnist
from medfed.simulations.datasets.msd import load_msd


def write_picture(path: Path, seed: int, *channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (20, 24, *channels), dtype=np.uint8)).save(path)


def write_mask(path: Path, *, empty: bool = False, mode: str = "L", column: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 24), dtype=np.uint8)
    if not empty:
        mask[5:9, column : column + 6] = 255
    Image.fromarray(mask).convert(mode).save(path)


def write_ham10000(folder: Path) -> None:
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for number, dx in enumerate(("nv", "nv", "mel", "bkl", "df", "vasc")):
        image_id = f"ISIC_{9 - number:07d}"
        lines.append(f"HAM_{number // 2},{image_id},{dx},histo,5{number}.0,male,back,rosendahl")
        write_picture(folder / "images" / f"{image_id}.jpg", number, 3)
        write_mask(folder / "masks" / f"{image_id}_segmentation.png")
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
            write_picture(root / case / f"{name}.tif", 10 * seed + number, 3)
            write_mask(root / case / f"{name}_mask.tif", empty=number == 2)
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
        write_picture(folder / "CHASEDB1" / f"{name}.jpg", seed, 3)
        for observer in ("1stHO", "2ndHO"):
            write_mask(folder / "CHASEDB1" / f"{name}_{observer}.png", mode="1")


def write_busi(folder: Path) -> None:
    root = folder / "Dataset_BUSI_with_GT"
    for seed, label in enumerate(("normal", "benign", "malignant")):
        for number in (1, 12):
            path = root / label / f"{label} ({number}).png"
            write_picture(path, 100 * seed + number)
            write_mask(path.with_name(f"{path.stem}_mask.png"), empty=label == "normal")


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
        write_picture(folder / "images" / f"{number}.png", number)
        write_mask(folder / "annotations/semantic_masks_v7labs_lungs" / f"{number}.png")
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
                write_picture(folder / "images/images_normalized" / name, uid + number)
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
    channels: int = 1
    overlapping: bool = False  # masks hold bits of regions rather than indices of structures

    def task(self, dataset: SourceDataset) -> TaskSection:
        if self.segmentation:
            mode = "multilabel" if self.overlapping else "multiclass"
            return TaskSection(type="segmentation", classes=dataset.structures, mode=mode)
        mode = "multilabel" if self.multilabel else "multiclass"
        return TaskSection(classes=dataset.classes, mode=mode)


CASES = {
    "ham10000": Case(
        write_ham10000,
        load_ham10000,
        "images/ISIC_0000004.jpg",
        ("HAM10000_metadata", "lesion_id", "lesion"),
        channels=3,
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
        channels=3,
    ),
    "msd": Case(
        write_msd,
        load_msd,
        "Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz",
        ("Task04_Hippocampus/dataset.json", '"labels"', '"structures"'),
        segmentation=True,
    ),
    "chase_db1": Case(
        write_chase_db1,
        load_chase_db1,
        "CHASEDB1/Image_01L.jpg",
        segmentation=True,
        channels=3,
    ),
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
