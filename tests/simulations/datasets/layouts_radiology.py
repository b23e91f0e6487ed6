"""Tiny files in the official layouts of the chest and breast data sets.

`CASES` is what `test_contract.py` runs every loader on; tests of ready-made studies write more.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from layouts_core import Case, write_mask, write_picture
from layouts_other import write_csv, write_xlsx
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medfed.simulations.datasets.cbis_ddsm import load_cbis_ddsm
from medfed.simulations.datasets.chexpert import CLASSES as CHEXPERT_CLASSES
from medfed.simulations.datasets.chexpert import load_chexpert
from medfed.simulations.datasets.duke_breast_mri import load_duke_breast_mri
from medfed.simulations.datasets.luna16 import load_luna16
from medfed.simulations.datasets.montgomery_tb import load_montgomery_tb
from medfed.simulations.datasets.nih_chestxray14 import load_nih_chestxray14
from medfed.simulations.datasets.shenzhen_tb import load_shenzhen_tb
from medfed.simulations.datasets.tb_chestxray import load_tb_chestxray

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
NIH_FINDINGS = ("No Finding", "Cardiomegaly|Effusion", "Pneumonia", "Hernia", "No Finding")


def write_nih(folder: Path, num_patients: int = 4) -> None:
    """Two images a patient; every fourth patient is tested on."""
    lines, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for number in range(2 * num_patients):
        patient = number // 2 + 1
        name = f"{patient:08d}_{number % 2:03d}.png"
        finding = NIH_FINDINGS[number % len(NIH_FINDINGS)]
        lines.append(f"{name},{finding},{number % 2},{patient},{50 + patient},F,PA,9,9,0.1,0.1,")
        side = "test_list.txt" if patient % 4 == 0 else "train_val_list.txt"
        lists[side].append(name)
        write_picture(folder / "images" / name, number)
    write_csv(folder / "Data_Entry_2017_v2020.csv", NIH_HEADER, lines)
    for list_name, names in lists.items():
        (folder / list_name).write_text("\n".join(names))


def chexpert_line(path: str, observations: dict[str, str]) -> str:
    values = ",".join(observations.get(name, "") for name in CHEXPERT_CLASSES)
    return f"CheXpert-v1.0-small/{path},Female,68,Frontal,AP,{values}"


CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT_CLASSES)


def write_chexpert(folder: Path, num_patients: int = 3) -> None:
    root = folder / "CheXpert-v1.0-small"
    seen = ({"No Finding": "1.0"}, {"Edema": "1.0", "Fracture": "0.0"}, {"Pneumonia": "-1.0"})
    for part, first in (("train", 1), ("valid", 64541)):
        lines = []
        for number in range(num_patients):
            path = f"{part}/patient{first + number:05d}/study1/view1_frontal.jpg"
            lines.append(chexpert_line(path, seen[number % len(seen)]))
            write_picture(root / path, first + number)
        write_csv(root / f"{part}.csv", CHEXPERT_HEADER, lines)


def write_montgomery(folder: Path, num: int = 4) -> None:
    root = folder / "MontgomerySet"
    for number in range(1, num + 1):
        name = f"MCUCXR_{number:04d}_{number % 2}"
        write_picture(root / "CXR_png" / f"{name}.png", number)
        for side, column in (("leftMask", 12), ("rightMask", 2)):
            write_mask(root / "ManualMask" / side / f"{name}.png", column=column, mode="1")
        reading = "normal" if number % 2 == 0 else "RUL infiltrate. Active TB."
        write_reading(root, name, f"Patient's Sex: F \nPatient's Age: 0{20 + number}Y\n{reading}")


def write_shenzhen(folder: Path, num: int = 4) -> None:
    root = folder / "ChinaSet_AllFiles"
    for number in range(1, num + 1):
        name = f"CHNCXR_{number:04d}_{number % 2}"
        write_picture(root / "CXR_png" / f"{name}.png", 100 + number, 3)
        if number > 1:
            write_mask(root / "mask" / "mask" / f"{name}_mask.png")
        write_reading(root, name, f"male {30 + number}yrs\n{'PTB' if number % 2 else 'normal'}")


def write_reading(root: Path, name: str, text: str) -> None:
    path = root / "ClinicalReadings" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_tb(folder: Path, num: int = 4) -> None:
    write_montgomery(folder, num)
    write_shenzhen(folder, num)


def write_metaimage(
    path: Path,
    voxels_zyx: npt.NDArray[np.generic],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    signs: Sequence[int] = (1, 1, 1),
    more: str = "",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y, z = signs
    header = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        f"TransformMatrix = {x} 0 0 0 {y} 0 0 0 {z}",
        f"Offset = {' '.join(map(str, origin))}",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = RAI",
        f"ElementSpacing = {' '.join(map(str, spacing))}",
        f"DimSize = {' '.join(map(str, voxels_zyx.shape[::-1]))}",
        *filter(None, [more]),
        "ElementType = MET_SHORT",
        f"ElementDataFile = {path.stem}.raw",
    ]
    path.write_text("\n".join(header) + "\n")
    path.with_suffix(".raw").write_bytes(voxels_zyx.astype("<i2").tobytes())


def luna_uid(number: int) -> str:
    return f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:039d}"


def write_luna(folder: Path, num_scans: int = 3) -> None:
    """Scan 0 has one candidate, a nodule; the others have two and three more."""
    candidates, annotations = [], []
    makers = ("GE MEDICAL SYSTEMS", "SIEMENS")
    series = []
    for number in range(num_scans):
        uid = luna_uid(number)
        voxels = np.random.default_rng(number).integers(-1000, 400, (20, 24, 28))
        header = folder / f"subset{number % 10}" / f"{uid}.mhd"
        write_metaimage(header, voxels, spacing=(2.0, 2.0, 2.5), origin=(-30, -20.5, -100))
        annotations.append(f"{uid},-2.0,3.5,-75.0,8.0")
        candidates.append(f"{uid},-2.0,3.5,-74.0,1")
        if number:
            candidates += [f"{uid},{x},-6.5,-80,0" for x in (-20, 8)]
        maker = makers[number % len(makers)]
        location = f".\\LIDC-IDRI\\LIDC-IDRI-{number:04d}\\a\\b"
        series.append(
            f"{uid},LIDC-IDRI,,,LIDC-IDRI-{number:04d},1.2,,01-01-2000,,{maker},CT,"
            f"CT Image Storage,1.2.840.10008.5.1.4.1.1.2,20,10 MB,{location},"
            "2021-09-30T21:38:59.207"
        )
    place = "seriesuid,coordX,coordY,coordZ"
    write_csv(folder / "candidates_V2.csv", f"{place},class", candidates)
    write_csv(folder / "annotations.csv", f"{place},diameter_mm", annotations)
    write_csv(folder / "metadata.csv", NBIA_HEADER, series)


NBIA_HEADER = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,"
    "Study Description,Study Date,Series Description,Manufacturer,Modality,SOP Class Name,"
    "SOP Class UID,Number of Images,File Size,File Location,Download Timestamp"
)


def write_dicom(path: Path, values: npt.NDArray[np.generic], photometric: str = "") -> None:
    """Write `values` of 8 or 16 bits, unsigned [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric or "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)


MASS_HEADER = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,"
    "mass shape,mass margins,assessment,pathology,subtlety,image file path,"
    "cropped image file path,ROI mask file path"
)
CALC_HEADER = MASS_HEADER.replace("breast_density", "breast density").replace(
    "mass shape,mass margins", "calc type,calc distribution"
)


def cbis_line(
    case: str, number: int, pathology: str, *, patient: str = "", assessment: int = 4
) -> str:
    """The row of abnormality `number`; paths end in line breaks, as published ones do."""
    patient = patient or "_".join(case.split("_")[1:3])
    breast, view = case.split("_")[3:5]
    uids = "1.3.6.1.4.1.9590.100.1.2.{0}/1.3.6.1.4.1.9590.100.1.2.{0}{1}"
    image = f"{case}/{uids.format(1, case_number(case))}/000000.dcm"
    roi = f"{case}_{number}/{uids.format(2, case_number(case) + str(number))}/00000"
    return (
        f"{patient},3,{breast},{view},{number},mass,OVAL,ILL_DEFINED,{assessment},{pathology},4,"
        f'{image},"{roi}1.dcm\n","{roi}0.dcm\n"'
    )


def case_number(case: str) -> str:
    return "".join(str(ord(letter)) for letter in case[-12:] if letter.isalnum())


def write_cbis_images(base: Path, case: str, outlines: Sequence[int], seed: int = 0) -> None:
    """The mammogram and, by abnormality, mask and crop, in folders with speaking names."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    day = "07-20-2016-DDSM-NA-30288"
    write_dicom(base / case / day / "1.000000-full mammogram images-24515/1-1.dcm", image)
    for number, column in enumerate(outlines, start=1):
        mask = np.zeros(image.shape, dtype=np.uint8)
        mask[5:9, column : column + 4] = 255
        folder = base / f"{case}_{number}" / day / "1.000000-ROI mask images-47061"
        # Which of the two is the mask changes.
        names = ("1-1.dcm", "1-2.dcm") if number % 2 else ("1-2.dcm", "1-1.dcm")
        write_dicom(folder / names[0], mask)
        write_dicom(folder / names[1], image[4:10, column : column + 6])


def write_cbis(folder: Path, num_patients: int = 2) -> None:
    base = folder / "CBIS-DDSM"
    for kind, header, name in (("Mass", MASS_HEADER, "mass"), ("Calc", CALC_HEADER, "calc")):
        for part, side, first in (("Training", "train", 1), ("Test", "test", 1000)):
            lines = []
            for number in range(num_patients):
                patient = first + number + (500 if kind == "Calc" else 0)
                for view in ("CC", "MLO"):
                    case = f"{kind}-{part}_P_{patient:05d}_LEFT_{view}"
                    pathology = ("BENIGN", "MALIGNANT")[number % 2]
                    lines.append(cbis_line(case, 1, pathology))
                    write_cbis_images(base, case, [6], seed=patient)
            write_csv(folder / f"{name}_case_description_{side}_set.csv", header, lines)


DUKE_SIDES = ("Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice")
DUKE_HEADER = "original_path_and_filename,classic_path,descriptive_path"


def duke_line(patient: str, view: str, number: int) -> str:
    """A row of the mapping, with a doubled slash and more zeros than the files have."""
    classic = f"Duke-Breast-Cancer-MRI/{patient}/1.3.6.1.4.1/{duke_uid(view)}/1-{number:03d}.dcm"
    described = (
        f"Duke-Breast-Cancer-MRI/{patient.replace('_', '')}//01-01-1990-NA-MRI BREAST-97538/"
        f"{duke_folder(view)}/1-{number:03d}.dcm"
    )
    original = f"DICOM_Images/{patient}/{view}/{patient}_{view}_{number:03d}.dcm"
    return f"{original},{classic},{described}"


def duke_uid(view: str) -> str:
    return f"1.3.6.{1 + ('pre', 'post_1', 'post_2').index(view)}"


def duke_folder(view: str) -> str:
    names = {"pre": "3.000000-ax dyn pre", "post_1": "26.000000-ax dyn 1st pass"}
    return names.get(view, "27.000000-ax dyn 2nd pass") + "-16472"


def write_duke(folder: Path, num_patients: int = 2, num_slices: int = 12) -> None:
    """Named by descriptions; the tumour is in slices 1 and 2, the last view is missing."""
    rows: list[list[str | int]] = [["Patient ID", *DUKE_SIDES]]
    lines, series = [], []
    for index in range(1, num_patients + 1):
        patient = f"Breast_MRI_{index:03d}"
        rows.append([patient, 4, 9, 6, 12, 1, 2])
        for view in ("pre", "post_1", "post_2"):
            place = f"{patient}/01-01-1990-NA-MRI BREAST-97538/{duke_folder(view)}"
            for number in range(1, num_slices + 1):
                lines.append(duke_line(patient, view, number))
                if view != "post_2":
                    rng = np.random.default_rng([index, number, len(view)])
                    values = rng.integers(0, 800, (20, 24), dtype=np.uint16)
                    path = folder / "Duke-Breast-Cancer-MRI" / place / f"1-{number:02d}.dcm"
                    write_dicom(path, values)
        maker = ("GE MEDICAL SYSTEMS", "SIEMENS")[index % 2]
        series.append(
            f"1.3.{index},Duke-Breast-Cancer-MRI,,,{patient},1.2,,01-01-1990,,{maker},MR,"
            f"MR Image Storage,1.2.840.10008.5.1.4.1.1.4,{num_slices},10 MB,./{patient},"
            "2021-09-30T21:38:59.207"
        )
    write_xlsx(folder / "Annotation_Boxes.xlsx", rows)
    write_csv(folder / "Breast-Cancer-MRI-filepath_filename-mapping.csv", DUKE_HEADER, lines)
    write_csv(folder / "metadata.csv", NBIA_HEADER, series)


_DUKE_SLICE = (
    "Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI BREAST-97538/"
    "26.000000-ax dyn 1st pass-16472/1-02.dcm"
)
_CBIS_IMAGE = (
    "CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/07-20-2016-DDSM-NA-30288/"
    "1.000000-full mammogram images-24515/1-1.dcm"
)

CASES = {
    "nih_chestxray14": Case(
        write_nih,
        load_nih_chestxray14,
        "images/00000002_001.png",
        ("Data_Entry_2017_v2020.csv", "Patient ID", "Patient"),
        multilabel=True,
    ),
    "chexpert": Case(
        write_chexpert,
        load_chexpert,
        "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg",
        ("CheXpert-v1.0-small/train.csv", "Frontal/Lateral", "View"),
        multilabel=True,
    ),
    "montgomery_tb": Case(
        write_montgomery, load_montgomery_tb, "MontgomerySet/CXR_png/MCUCXR_0003_1.png"
    ),
    "shenzhen_tb": Case(
        write_shenzhen, load_shenzhen_tb, "ChinaSet_AllFiles/CXR_png/CHNCXR_0003_1.png"
    ),
    "tb_chestxray": Case(
        write_tb, load_tb_chestxray, "ChinaSet_AllFiles/CXR_png/CHNCXR_0002_0.png"
    ),
    "luna16": Case(
        write_luna,
        load_luna16,
        f"subset0/{luna_uid(0)}.raw",
        ("candidates_V2.csv", "seriesuid", "series"),
    ),
    "cbis_ddsm": Case(
        write_cbis,
        load_cbis_ddsm,
        _CBIS_IMAGE,
        ("mass_case_description_train_set.csv", "pathology", "diagnosis"),
    ),
    "duke_breast_mri": Case(
        write_duke,
        load_duke_breast_mri,
        _DUKE_SLICE,
        ("Breast-Cancer-MRI-filepath_filename-mapping.csv", "classic_path", "path"),
        views=("post_1", "pre", "post_2"),
    ),
}
