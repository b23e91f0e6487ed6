"""Tiny files in the official layouts of the data sets outside chest and breast radiology.

`CASES` is what `test_contract.py` runs every loader on; tests of ready-made studies write more.
"""

import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.simulations.datasets.aptos import load_aptos
from medfed.simulations.datasets.brats import load_brats
from medfed.simulations.datasets.diabetic_retinopathy import load_diabetic_retinopathy
from medfed.simulations.datasets.isic2019 import load_isic2019
from medfed.simulations.datasets.oct_amd import load_oct_amd
from medfed.simulations.datasets.refuge import load_refuge
from medfed.simulations.datasets.vqa_rad import load_vqa_rad

sys.path.insert(0, str(Path(__file__).parent))

from layouts_core import Case


def write_picture(path: Path, seed: int, *channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (20, 24, *channels), dtype=np.uint8)).save(path)


def write_csv(path: Path, header: str, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def write_xlsx(
    path: Path, rows: Sequence[Sequence[str | int | float]], *, shared: bool = True
) -> None:
    """Write what Excel does: texts in a table of their own (or, as other programs do, inline)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    strings: dict[str, int] = {}
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = ""
        for column, value in enumerate(row):
            place = f'r="{chr(ord("A") + column)}{number}"'
            if not isinstance(value, str):
                cells += f"<c {place}><v>{value}</v></c>"
            elif shared:
                index = strings.setdefault(value, len(strings))
                cells += f'<c {place} t="s"><v>{index}</v></c>'
            else:
                cells += f'<c {place} t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        lines.append(f'<row r="{number}">{cells}</row>')
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f'<?xml version="1.0"?><worksheet {main}><sheetData>{"".join(lines)}</sheetData>'
            "</worksheet>",
        )
        if shared:
            items = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
            archive.writestr(
                "xl/sharedStrings.xml", f'<?xml version="1.0"?><sst {main}>{items}</sst>'
            )


ISIC_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
# The source of a lesion, the clinic if it is of HAM10000, and FLamby's number of the centre.
ISIC_ORIGINS = (
    ("BCN", "", 0),
    ("HAM", "vidir_molemax", 1),
    ("HAM", "vidir_modern", 2),
    ("HAM", "rosendahl", 3),
    ("MSK4", "", 4),
    ("HAM", "vienna_dias", 5),
)


def write_isic2019(folder: Path, lesions_per_center: int = 1, *, folds: bool = True) -> None:
    """Two images a lesion, the second one downsampled where it is of MSK; one without a lesion."""
    truth, metadata, splits = [], [], []
    clinics = []
    for number, (source, clinic, center) in enumerate(ISIC_ORIGINS * lesions_per_center):
        for image in range(2):
            name = f"ISIC_{2 * number + image:07d}"
            name += "_downsampled" * (source == "MSK4" and image == 1)
            chosen = number % 8
            row = ",".join("1.0" if i == chosen else "0.0" for i in range(len(ISIC_CLASSES)))
            truth.append(f"{name},{row}")
            metadata.append(f"{name},55,anterior torso,{source}_{number:07d},female")
            side = "test" if number // len(ISIC_ORIGINS) % 3 == 2 else "train"
            splits.append(f"{name},{row},{chosen},{center},{side},{side}_{center}")
            if clinic:
                clinics.append(f"HAM_{number:07d},{name},nv,histo,55.0,female,back,{clinic}")
            write_picture(folder / "ISIC_2019_Training_Input" / f"{name}.jpg", number, 3)
    truth.append("ISIC_0099999,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0")
    metadata.append("ISIC_0099999,,,,")
    write_picture(folder / "ISIC_2019_Training_Input" / "ISIC_0099999.jpg", 99, 3)
    names = ",".join(ISIC_CLASSES)
    write_csv(folder / "ISIC_2019_Training_GroundTruth.csv", f"image,{names}", truth)
    write_csv(
        folder / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        metadata,
    )
    ham = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    write_csv(folder / "HAM10000_metadata", ham, clinics)
    if folds:
        header = f"image,{names},target,center,fold,fold2"
        write_csv(folder / "train_test_split", header, splits)


def brats_labels(shape: tuple[int, ...], enhancing: int) -> npt.NDArray[np.uint8]:
    labels = np.zeros(shape, dtype=np.uint8)
    low = [side // 4 for side in shape]
    box = tuple(
        slice(start, start + max(3, side // 3)) for start, side in zip(low, shape, strict=True)
    )
    labels[box] = 2
    labels[tuple(slice(part.start, part.stop - 1) for part in box)] = 1
    labels[tuple(slice(part.start, part.stop - 2) for part in box)] = enhancing
    return labels


def write_brats(
    folder: Path,
    numbers: Sequence[int] = (0, 2),
    *,
    case: str = "BraTS2021_{:05d}",
    sequences: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
    enhancing: int = 4,
    shape: tuple[int, ...] = (8, 9, 7),
    suffix: str = ".nii.gz",
) -> None:
    separator = "-" if "GLI" in case else "_"
    for number in numbers:
        name = case.format(number)
        labels = brats_labels(shape, enhancing)
        for position, sequence in enumerate(sequences):
            rng = np.random.default_rng(10 * number + position)
            values = rng.normal(900, 200, shape) + 300.0 * labels
            # As published, what is no brain is 0.
            values[0] = 0
            _save_volume(
                folder / name / f"{name}{separator}{sequence}{suffix}", values.astype(np.int16)
            )
        _save_volume(folder / name / f"{name}{separator}seg{suffix}", labels)


def write_partitions(folder: Path, institutions: Mapping[int, int]) -> None:
    for name in ("partitioning_1.csv", "partitioning_2.csv"):
        lines = [f"{site},FeTS2022_{number:05d}" for number, site in institutions.items()]
        write_csv(folder / name, "Partition_ID,Subject_ID", lines)


def _write_brats_case(folder: Path) -> None:
    write_brats(folder)
    write_partitions(folder, {0: 1, 2: 18})


def _save_volume(path: Path, values: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), path)


def write_diabetic_retinopathy(folder: Path, num_patients: int = 4, num_test: int = 2) -> None:
    def part(name: str, labels: str, header: str, first: int, number: int) -> None:
        lines = []
        for patient in range(first, first + number):
            for eye in ("left", "right"):
                usage = ",Private" * ("Usage" in header)
                lines.append(f"{patient}_{eye},{(patient + (eye == 'right')) % 5}{usage}")
                path = folder / name / f"{patient}_{eye}.jpeg"
                write_picture(path, 2 * patient + (eye == "left"), 3)
        write_csv(folder / labels, header, lines)

    part("train", "trainLabels.csv", "image,level", 10, num_patients)
    if num_test:
        first = 10 + num_patients
        part("test", "retinopathy_solution.csv", "image,level,Usage", first, num_test)


def write_aptos(folder: Path, number: int = 6) -> None:
    lines = []
    for index in range(number):
        name = f"{index * 7919:012x}"
        lines.append(f"{name},{index % 5}")
        write_picture(folder / "train_images" / f"{name}.png", index, 3)
    write_csv(folder / "train.csv", "id_code,diagnosis", lines)


def write_refuge(folder: Path, glaucoma: int = 1, healthy: int = 2, others: int = 2) -> None:
    annotations = folder / "Annotation-Training400" / "Disc_Cup_Masks"
    for kind, letter, number in (("Glaucoma", "g", glaucoma), ("Non-Glaucoma", "n", healthy)):
        for index in range(1, number + 1):
            name = f"{letter}{index:04d}"
            write_picture(folder / "Training400" / kind / f"{name}.jpg", index, 3)
            write_disc(annotations / kind / f"{name}.bmp")
    for letter, images, truth, sheet, header in (
        (
            "V",
            "REFUGE-Validation400",
            "REFUGE-Validation400-GT",
            "Fovea_locations.xlsx",
            ("ImgName", "Fovea_X", "Fovea_Y", "Glaucoma Label"),
        ),
        (
            "T",
            "Test400",
            "REFUGE-Test-GT",
            "Glaucoma_label_and_Fovea_location.xlsx",
            ("ImgName", "Fovea_X", "Fovea_Y", "Label(Glaucoma=1)"),
        ),
    ):
        rows: list[Sequence[str | int | float]] = [("ID", *header)]
        for index in range(1, others + 1):
            name = f"{letter}{index:04d}"
            rows.append((index, f"{name}.jpg", 800.5, 790.25, index % 2))
            write_picture(folder / images / f"{name}.jpg", 50 + index, 3)
            below = ("G" if index % 2 else "N",) if letter == "T" else ()
            write_disc(folder.joinpath(truth, "Disc_Cup_Masks", *below, f"{name}.bmp"))
        write_xlsx(folder / truth / sheet, rows)


def write_disc(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full((20, 24), 255, dtype=np.uint8)
    mask[4:14, 5:17] = 128
    mask[7:11, 9:13] = 0
    Image.fromarray(mask).save(path)


def write_oct_amd(folder: Path, patients: int = 2, tested: int = 1) -> None:
    root = folder / "OCT2017"
    for index, label in enumerate(("CNV", "DME", "DRUSEN", "NORMAL")):
        for number in range(patients + tested):
            patient = 1000 * (index + 1) + number
            part = "train" if number < patients else "test"
            for image in (1, 12):
                path = root / part / label / f"{label}-{patient}-{image}.jpeg"
                write_picture(path, patient + image)


def write_vqa_rad(folder: Path, number: int = 4) -> None:
    entries = []
    for index in range(number):
        name = f"synpic{100 + index}.jpg"
        organ = ("HEAD", "CHEST", "ABD")[index % 3]
        for question, answer in (("Is there free air?", "No"), ("how many masses are there", 2)):
            entries.append(
                {
                    "qid": len(entries),
                    "phrase_type": "freeform",
                    "image_case_url": f"https://medpix.nlm.nih.gov/case?id={index}",
                    "image_name": name,
                    "image_organ": organ,
                    "question": question,
                    "answer": answer,
                    "answer_type": "CLOSED ",
                }
            )
        write_picture(folder / "VQA_RAD Image Folder" / name, index, 3)
    text = json.dumps(entries, indent=1)
    (folder / "VQA_RAD Dataset Public.json").write_text(text, encoding="utf-8")


CASES: dict[str, Case] = {
    "isic2019": Case(
        write_isic2019,
        load_isic2019,
        "ISIC_2019_Training_Input/ISIC_0000003.jpg",
        ("ISIC_2019_Training_Metadata.csv", "lesion_id", "lesion"),
        channels=3,
    ),
    "brats": Case(
        _write_brats_case,
        load_brats,
        "BraTS2021_00002/BraTS2021_00002_t1ce.nii.gz",
        ("partitioning_1.csv", "Partition_ID", "Partition"),
        segmentation=True,
        channels=4,
        overlapping=True,
    ),
    "diabetic_retinopathy": Case(
        write_diabetic_retinopathy,
        load_diabetic_retinopathy,
        "train/11_left.jpeg",
        ("trainLabels.csv", "level", "grade"),
        channels=3,
    ),
    "aptos": Case(
        write_aptos,
        load_aptos,
        "train_images/000000001eef.png",
        ("train.csv", "diagnosis", "level"),
        channels=3,
    ),
    "refuge": Case(
        write_refuge,
        load_refuge,
        "REFUGE-Validation400/V0001.jpg",
        segmentation=True,
        channels=3,
        overlapping=True,
    ),
    "oct_amd": Case(write_oct_amd, load_oct_amd, "OCT2017/train/DME/DME-2001-12.jpeg", channels=1),
    "vqa_rad": Case(
        write_vqa_rad,
        load_vqa_rad,
        "VQA_RAD Image Folder/synpic102.jpg",
        ("VQA_RAD Dataset Public.json", '"image_organ"', '"organ"'),
        channels=3,
    ),
}
