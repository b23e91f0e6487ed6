"""BraTS: brain MR of gliomas in four sequences with tumour regions, in its layouts since 2020.

    BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz        2021; FeTS2022_, too
    BraTS20_Training_001/BraTS20_Training_001_{...}.nii                  2020
    BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz 2023: patient, time point
    partitioning_1.csv, partitioning_2.csv                               FeTS 2022, optional

Labels are 1 necrotic core, 2 oedema, 4 enhancing tumour; in 2023 that is 3. The regions of the
challenge overlap: whole tumour is all three, tumour core all but oedema.

FeTS 2022, BraTS 2021 and 2023 number patients alike: the number is the patient key, and a case of
any of them is found in FeTS's partition files, whose institutions are the columns `partition_1`
(as collected) and `partition_2` (the large ones cut by tumour size). There is no official split of
the cases with labels; the validation cases have none.

The sequences lie on one grid and are channels of one image here, [D, H, W, 4] in the order t1,
t1ce, t2, flair, so that patches can be trained on; a case that lacks one is quarantined.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.nifti import (
    check_same_geometry,
    read_geometry,
    read_labels,
    read_volume,
    rescale_intensity,
)
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.fets import read_institutions, warn_of_missing
from medfed.simulations.datasets.folders import find_root

SEQUENCES = ("t1", "t1ce", "t2", "flair")
STRUCTURES = ("whole tumor", "tumor core", "enhancing tumor")

HOW_TO_GET = (
    "Download the training data of BraTS 2021 (https://www.synapse.org/Synapse:syn25829067), BraTS "
    "2023 adult glioma (https://www.synapse.org/Synapse:syn51156910) or FeTS 2022 "
    "(https://www.synapse.org/Synapse:syn28546456), after registration there, unpack them and name "
    "the folder that holds the cases with --data. For FeTS's institutions place partitioning_1.csv "
    "and partitioning_2.csv (https://github.com/FeTS-AI/Challenge, Task_1) beside the cases."
)

_ROOTS = (
    "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021",
    "RSNA_ASNR_MICCAI_BraTS2021_TrainingData",
    "BraTS2021_Training_Data",
    "MICCAI_FeTS2022_TrainingData",
    "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",
    "BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData",
    "MICCAI_BraTS2020_TrainingData",
)
_SUFFIXES = (".nii.gz", ".nii")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "brats loader 1"


@dataclass(frozen=True, kw_only=True)
class _Edition:
    """How a year names cases and files, and the label of enhancing tumour."""

    case: re.Pattern[str]
    separator: str
    sequences: tuple[str, ...]
    enhancing: int


_EDITIONS = (
    _Edition(
        case=re.compile(r"(?:BraTS2021|FeTS2022)_(\d{5})|(BraTS20)_Training_(\d{3})"),
        separator="_",
        sequences=("t1", "t1ce", "t2", "flair"),
        enhancing=4,
    ),
    _Edition(
        case=re.compile(r"BraTS-GLI-(\d{5})-\d{3}"),
        separator="-",
        sequences=("t1n", "t1c", "t2w", "t2f"),
        enhancing=3,
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Case:
    """The files of one case. They need not exist: then reading says so."""

    name: str
    patient: str
    sequences: Mapping[str, Path]
    label: Path
    enhancing: int

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.sequences.values(), self.label)


def load_brats(folder: Path) -> SourceDataset:
    """Read the cases in `folder`, which holds them or the folder that the archives unpack to.

    Volumes are turned to right, anterior, superior. Intensities are mapped to 0..255, each sequence
    by the 0.5th and 99.5th percentile of its brain (the voxels that are not 0, as published). Mask
    bits are the regions in STRUCTURES. A case without one of its five files, with a file of
    another geometry or with another label is a record whose `read_image` or `read_mask` raises.

    Raises:
        DataError: No such folder, or partition files that cannot be read as such.
    """
    root = find_root(
        folder,
        (*_ROOTS, *(f"{name}/{name}" for name in _ROOTS)),
        lambda root: any(_edition(path.name) for path in root.iterdir()),
        name="BraTS",
        expected="folders BraTS2021_00000, FeTS2022_00000 or BraTS-GLI-00000-000 and so on",
        how_to_get=HOW_TO_GET,
    )
    cases = [
        _case(path, edition)
        for path in sorted(root.iterdir())
        if path.is_dir() and (edition := _edition(path.name))
    ]
    institutions = read_institutions((root, folder), _patient, how_to_get=HOW_TO_GET)
    warn_of_missing(institutions, (one.patient for one in cases))
    rows = [(one.name, *(_digest(path) for path in one.files)) for one in cases]
    return SourceDataset(
        name="BraTS",
        licence="Terms of BraTS and FeTS on Synapse: research use, after registration",
        citation=(
            "Baid U et al. The RSNA-ASNR-MICCAI BraTS 2021 benchmark. arXiv:2107.02314 (2021); "
            "Menze BH et al. IEEE Trans Med Imaging 34:1993 (2015); Bakas S et al. Sci Data "
            "4:170117 (2017). Institutions: Pati S et al. FeTS. arXiv:2105.05874 (2021)."
        ),
        classes=(),
        records=tuple(_record(one, institutions.columns(one.patient)) for one in cases),
        digest=dataset_digest(_LOADER, [institutions.contents, *rows]),
        structures=STRUCTURES,
        dimensions=3,
    )


def _edition(name: str) -> _Edition | None:
    return next((edition for edition in _EDITIONS if edition.case.fullmatch(name)), None)


def _patient(name: str) -> str:
    """The number that FeTS 2022, BraTS 2021 and 2023 share; of 2020, whose numbers differ, both."""
    edition = _edition(name)
    match = edition.case.fullmatch(name) if edition else None
    return "-".join(part for part in match.groups() if part) if match else name


def _case(folder: Path, edition: _Edition) -> _Case:
    stem = folder.name + edition.separator
    sequences = {
        name: _file(folder, stem + own)
        for name, own in zip(SEQUENCES, edition.sequences, strict=True)
    }
    label = _file(folder, f"{stem}seg")
    if not label.is_file():
        # Case 355 of 2020 has W39_1998.09.19_Segm.nii.
        others = [
            path
            for path in _volumes(folder)
            if path not in sequences.values() and "seg" in path.name.lower()
        ]
        label = others[0] if len(others) == 1 else label
    return _Case(
        name=folder.name,
        patient=_patient(folder.name),
        sequences=sequences,
        label=label,
        enhancing=edition.enhancing,
    )


def _file(folder: Path, stem: str) -> Path:
    """The file of that name, which may not exist."""
    for path in (folder / f"{stem}{suffix}" for suffix in _SUFFIXES):
        if path.is_file():
            return path
        # Some copies hold a folder of the file's name, and in it the volume under another name.
        if path.is_dir() and len(inner := _volumes(path)) == 1:
            return inner[0]
    return folder / f"{stem}{_SUFFIXES[0]}"


def _volumes(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name.endswith(_SUFFIXES) and not path.name.startswith(".") and path.is_file()
    ]


def _digest(path: Path) -> str:
    return file_digest(path if path.exists() else None)


def _record(one: _Case, columns: Mapping[str, str]) -> SourceRecord:
    try:
        spacing_mm = read_geometry(one.sequences[SEQUENCES[0]]).spacing_mm
    except UnreadableImageError:
        # Reading the image says why.
        spacing_mm = None
    return SourceRecord(
        record_id=one.name,
        patient_id=one.patient,
        labels=(),
        source=f"{one.name}/{', '.join(path.name for path in one.files)}",
        read_image=functools.partial(_read_image, one),
        read_mask=functools.partial(_read_mask, one),
        columns=columns,
        spacing_mm=spacing_mm,
    )


def _read_image(one: _Case) -> npt.NDArray[np.generic]:
    for path in one.files:
        if not path.is_file():
            raise UnreadableImageError(
                f"Expected {path.name} in {one.name}/, found none. Fetch it again, or leave the "
                "case out: validation cases have no labels."
            )
    first = read_geometry(one.files[0])
    for path in one.files[1:]:
        check_same_geometry(first, read_geometry(path), f"{one.name} ({path.name})")
    return np.stack([_read_sequence(path) for path in one.sequences.values()], axis=-1)


def _read_sequence(path: Path) -> npt.NDArray[np.float32]:
    values = read_volume(path)
    if values.ndim != 3:
        raise UnreadableImageError(
            f"{path}: expected one sequence, got a volume of shape {list(values.shape)}."
        )
    # What is no brain takes no part in the percentiles, and becomes 0 as what is not finite does.
    brain = np.where(values == 0, np.float32(np.nan), values) if values.any() else values
    return rescale_intensity(brain, str(path))


def _read_mask(one: _Case) -> npt.NDArray[np.uint8]:
    labels = read_labels(one.label)
    others = np.setdiff1d(labels, (0, 1, 2, one.enhancing))
    if others.size:
        raise UnreadableImageError(
            f"{one.label}: expected labels 0, 1, 2 and {one.enhancing} (enhancing tumor), got "
            f"{', '.join(map(str, others[:5]))} too. Is it of another year of BraTS?"
        )
    regions = (labels > 0, (labels == 1) | (labels == one.enhancing), labels == one.enhancing)
    mask = np.zeros(labels.shape, dtype=np.uint8)
    for bit, region in enumerate(regions):
        mask |= region.astype(np.uint8) << bit
    return mask
