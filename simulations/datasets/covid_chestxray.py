"""COVID-19 image data collection: chest radiographs with findings, clinical notes and lung masks.

    metadata.csv                                            a row an image; 29th column without name
    images/<filename>
    annotations/semantic_masks_v7labs_lungs/<filename>      PNG whatever the name says

The masks are those of V7 Labs as torchxrayvision hands them out. The model output in
annotations/lungVAE-masks is no ground truth and is not read. There is no official split. Places
are free text in column `location`; a patient may have been imaged in two of them.
"""

import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.pictures import list_pictures, read_mask, read_picture, refuse
from medfed.simulations.datasets.tables import Table, line_of_key, read_table

logger = logging.getLogger(__name__)

# Column finding of the later releases is a path in this tree; earlier ones give its last part.
_FINDINGS = (
    "No Finding",
    "Pneumonia",
    "Pneumonia/Viral",
    "Pneumonia/Viral/COVID-19",
    "Pneumonia/Viral/SARS",
    "Pneumonia/Viral/MERS-CoV",
    "Pneumonia/Viral/Varicella",
    "Pneumonia/Viral/Herpes",
    "Pneumonia/Viral/Influenza",
    "Pneumonia/Viral/Influenza/H1N1",
    "Pneumonia/Bacterial",
    "Pneumonia/Bacterial/Streptococcus",
    "Pneumonia/Bacterial/Klebsiella",
    "Pneumonia/Bacterial/Chlamydophila",
    "Pneumonia/Bacterial/Legionella",
    "Pneumonia/Bacterial/E.Coli",
    "Pneumonia/Bacterial/Mycoplasma",
    "Pneumonia/Bacterial/Nocardia",
    "Pneumonia/Bacterial/Staphylococcus",
    "Pneumonia/Bacterial/Staphylococcus/MRSA",
    "Pneumonia/Fungal",
    "Pneumonia/Fungal/Pneumocystis",
    "Pneumonia/Fungal/Aspergillosis",
    "Pneumonia/Lipoid",
    "Pneumonia/Aspiration",
    "Tuberculosis",
    "ARDS",
)
CLASSES = tuple(finding.rpartition("/")[2] for finding in _FINDINGS)
STRUCTURES = ("lungs",)

HOW_TO_GET = (
    "Clone https://github.com/ieee8023/covid-chestxray-dataset and name the clone with --data. For "
    "lung masks unpack semantic_masks_v7labs_lungs.zip of "
    "https://github.com/mlmed/torchxrayvision (torchxrayvision/data) into annotations/."
)

_PATH_OF = {
    name.lower(): finding.split("/") for name, finding in zip(CLASSES, _FINDINGS, strict=True)
}
_NOT_LABELLED = frozenset({"", "todo", "unknown"})
_CT_VIEWS = frozenset({"axial", "coronal", "sagittal"})
_MASK_FOLDER = "annotations/semantic_masks_v7labs_lungs"

_KEYS = ("patientid", "filename")
_COLUMNS = ("view", "sex", "age", "location", "license")
_OTHERS = ("finding", "modality", "clinical_notes")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "covid_chestxray loader 1"


def load_covid_chestxray(folder: Path) -> SourceDataset:
    """Read the radiographs of the collection from `folder`, a clone of its repository.

    Slices of CT (by `modality` and `view`) are left out, and so are rows whose finding is empty,
    "Unknown" or "todo", with a warning: nobody has said what they show. Labels are all parts of a
    finding's path ("COVID-19" is also "Viral" and "Pneumonia"); several findings are separated by
    commas. A finding outside the tree becomes a label as written, checked by the store. The report
    is `clinical_notes`; characters that were broken when published (U+FFFD) are taken out of all
    texts. Images are grey, [H, W]. Masks are 0 background, 1 lungs without what lies over them
    (arrows, electrodes: grey in the files); an empty one counts as none. Every mask is decoded
    here, to tell. Licences differ by image, from CC BY to CC BY-NC-SA: column `license`.

    Raises:
        DataError: Folder or metadata missing, metadata that cannot be read as such, a column
            missing, an empty key, or an image named twice. Says file, line and column.
    """
    root = find_root(
        folder,
        ("covid-chestxray-dataset", "covid-chestxray-dataset-master"),
        lambda root: (root / "metadata.csv").is_file() and (root / "images").is_dir(),
        name="the COVID-19 image data collection",
        expected="metadata.csv and images/",
        how_to_get=HOW_TO_GET,
    )
    table = read_table(
        root / "metadata.csv",
        columns=(*_KEYS, *_COLUMNS, *_OTHERS),
        keys=_KEYS,
        how_to_get=HOW_TO_GET,
    )
    images = {path.name: path for path in list_pictures(root / "images")}
    masks = _find_masks(root)
    line_of = line_of_key(table, "filename")
    _warn_about_images(line_of, images)
    lines = [line_of[name] for name in sorted(line_of)]
    used = [line for line in lines if _is_labelled_radiograph(table.rows[line])]
    _report_left_out(table, lines)
    records = tuple(_record(table, line, images, masks) for line in used)
    return SourceDataset(
        name="COVID-19 image data collection",
        licence="By image, CC BY to CC BY-NC-SA 4.0: column license",
        citation=(
            "Cohen JP, Morrison P, Dao L, Roth K, Duong TQ, Ghassemi M. COVID-19 Image Data "
            "Collection: Prospective Predictions Are the Future. arXiv:2006.11988 (2020)."
        ),
        classes=CLASSES,
        records=records,
        digest=_digest(table, [record.record_id for record in records], images, masks),
        structures=STRUCTURES,
    )


def _find_masks(root: Path) -> dict[str, Path]:
    folder = root / _MASK_FOLDER
    if not folder.is_dir():
        logger.warning("There is no %s: no image has a lung mask.", _MASK_FOLDER)
        return {}
    return {path.name: path for path in list_pictures(folder)}


def _warn_about_images(line_of: Mapping[str, int], images: Mapping[str, Path]) -> None:
    extra = len(images.keys() - line_of.keys())
    if extra:
        logger.warning("%d image(s) have no row in the metadata and are not used.", extra)


def _is_radiograph(row: Mapping[str, str]) -> bool:
    view = row["view"].strip().lower()
    return row["modality"].strip().lower() == "x-ray" and view not in _CT_VIEWS


def _is_labelled_radiograph(row: Mapping[str, str]) -> bool:
    return _is_radiograph(row) and row["finding"].strip().lower() not in _NOT_LABELLED


def _report_left_out(table: Table, lines: list[int]) -> None:
    radiographs = [line for line in lines if _is_radiograph(table.rows[line])]
    logger.info("%d row(s) are no radiographs and are not used.", len(lines) - len(radiographs))
    without = sum(not _is_labelled_radiograph(table.rows[line]) for line in radiographs)
    if without:
        logger.warning("%d radiograph(s) have no finding yet and are not used.", without)


def _record(
    table: Table, line: int, images: Mapping[str, Path], masks: Mapping[str, Path]
) -> SourceRecord:
    row = table.rows[line]
    name = row["filename"]
    path = images.get(name)
    mask = masks.get(name)
    return SourceRecord(
        record_id=name,
        patient_id=row["patientid"].strip(),
        labels=_labels(row["finding"]),
        source=f"{table.path.name} line {line} ({name})",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "L")
        if path
        else functools.partial(
            refuse,
            f"Expected {name} that {table.path.name} names, found none in images/. Place it "
            "there, or delete its row.",
        ),
        read_mask=functools.partial(read_mask, mask) if mask and _holds_lungs(mask) else None,
        report=_clean(row["clinical_notes"]),
        columns={column: _clean(row[column]) for column in _COLUMNS},
    )


def _labels(finding: str) -> tuple[str, ...]:
    """The parts of the paths of every finding, those of the tree first and in its order."""
    parts: dict[str, None] = {}
    for one in finding.split(","):
        path = [part.strip() for part in one.split("/")]
        parts.update(dict.fromkeys(_PATH_OF.get(path[-1].lower(), path)))
    known = [name for name in CLASSES if name in parts]
    return (*known, *(name for name in parts if name and name not in CLASSES))


def _clean(text: str) -> str:
    return text.replace("\ufffd", "").strip()


def _holds_lungs(mask: Path) -> bool:
    try:
        return bool(read_mask(mask).any())
    except UnreadableImageError:
        # Reading it as a mask says why.
        return True


def _digest(
    table: Table, names: list[str], images: Mapping[str, Path], masks: Mapping[str, Path]
) -> str:
    files = [(name, file_digest(images.get(name)), file_digest(masks.get(name))) for name in names]
    return dataset_digest(_LOADER, [(hashlib.sha256(table.content).hexdigest(),), *files])
