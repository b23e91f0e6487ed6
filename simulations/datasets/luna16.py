"""LUNA16: candidates of lung nodules on chest CT, as cubes cut out of the scans of LIDC-IDRI.

    candidates_V2.csv                   seriesuid,coordX,coordY,coordZ,class; or candidates.csv
    annotations.csv                     seriesuid,coordX,coordY,coordZ,diameter_mm
    subset0/<seriesuid>.mhd, .raw       to subset9/: 888 scans
    metadata.csv                        optional, of a download of LIDC-IDRI from TCIA

A record is a candidate: a cube of 48 mm around it, labelled nodule or no nodule. The masks are
balls of the annotated diameters: nobody drew outlines here. Of the 750,000 candidates that are no
nodule ten a scan are taken, always the same. The ten subsets are folds for cross-validation
(column `subset`); there is no official split.

The scans name no patients, and a few patients of LIDC have two: metadata.csv tells them, and the
maker of the scanner (column `manufacturer`, natural sites). Without it each scan is a patient.
"""

import functools
import hashlib
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.luna16_cubes import Nodule, read_balls, read_cube
from medfed.simulations.datasets.luna16_tables import (
    Candidate,
    choose_candidates,
    find_candidates,
    nodules_of,
    read_annotations,
    read_candidates,
)
from medfed.simulations.datasets.metaimage import read_header
from medfed.simulations.datasets.nbia import NbiaSeries, read_nbia_metadata

logger = logging.getLogger(__name__)

CLASSES = ("no nodule", "nodule")
STRUCTURES = ("nodule",)

HOW_TO_GET = (
    "Download subset0.zip to subset9.zip, annotations.csv and candidates_V2.zip from "
    "https://zenodo.org/records/3723295 and https://zenodo.org/records/4121926 (each page lists "
    "the MD5 of its files; 120 GB, some subsets alone are fine), unpack them into one folder and "
    "name it with --data. For patients and scanners place metadata.csv there, which the NBIA Data "
    "Retriever writes for https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX."
)

_SUBSET = re.compile(r"subset(\d)")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "luna16 loader 1"


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """A scan that is here.

    `spacing_mm` is None where its header cannot be read, `nodules` where there are no annotations.
    """

    uid: str
    header: Path
    subset: str
    patient: str
    manufacturer: str
    spacing_mm: tuple[float, ...] | None
    candidates: tuple[Candidate, ...]
    nodules: tuple[Nodule, ...] | None


def load_luna16(folder: Path) -> SourceDataset:
    """Read LUNA16 from `folder`, which holds the subsets and the tables.

    Cubes are turned to right, anterior, superior, in the scan's own voxels (so their shapes
    differ, and their size in mm does not); -1000 to 400 HU become 0..255. Candidates of scans that
    are not here are left out, with a warning. A scan that is damaged has records whose
    `read_image` raises. Columns are `subset`, `manufacturer` and `diameter_mm` (of the annotated
    nodule that a candidate lies in, or empty).

    Raises:
        DataError: Folder, tables or scans missing, a table that cannot be read as such, a
            coordinate that is no number. Says file, line and column.
    """
    root = find_root(
        folder,
        ("LUNA16", "luna16"),
        lambda root: find_candidates(root) is not None and bool(_subset_folders(root)),
        name="LUNA16",
        expected="candidates_V2.csv and subset0/ or others",
        how_to_get=HOW_TO_GET,
    )
    headers = _find_headers(root)
    path = find_candidates(root)
    assert path is not None  # `find_root` has seen it
    candidates = read_candidates(path, headers)
    annotations = read_annotations(root)
    series, metadata = read_nbia_metadata(root, how_to_get=HOW_TO_GET)
    chosen = choose_candidates(candidates, headers)
    if not chosen:
        raise DataError(
            f"{candidates.path}: none of its scans is in the subsets of {root}. {HOW_TO_GET}"
        )
    nodules = nodules_of(annotations) if annotations else {}
    scans = [
        _scan(
            uid,
            headers[uid],
            tuple(own),
            tuple(nodules.get(uid, ())) if annotations else None,
            series.get(uid),
        )
        for uid, own in sorted(chosen.items())
    ]
    if series and (unknown := sum(scan.uid not in series for scan in scans)):
        logger.warning("%d scan(s) are not in metadata.csv: each counts as a patient.", unknown)
    contents = [candidates.content, annotations.content if annotations else b"", metadata]
    return SourceDataset(
        name="LUNA16",
        licence="CC BY 4.0 (scans: LIDC-IDRI, CC BY 3.0)",
        citation=(
            "Setio AAA et al. Validation, comparison, and combination of algorithms for automatic "
            "detection of pulmonary nodules in computed tomography images: The LUNA16 challenge. "
            "Med Image Anal 42:1 (2017). Scans: Armato SG et al. Med Phys 38:915 (2011)."
        ),
        classes=CLASSES,
        records=tuple(
            _record(scan, one, candidates.path.name) for scan in scans for one in scan.candidates
        ),
        digest=_digest(root, contents, scans),
        structures=STRUCTURES,
        dimensions=3,
    )


def _subset_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if _SUBSET.fullmatch(path.name) and path.is_dir())


def _find_headers(root: Path) -> dict[str, Path]:
    """The .mhd by scan. Some archives unpack to subset0/subset0/."""
    return {
        path.stem: path
        for folder in _subset_folders(root)
        for pattern in ("*.mhd", f"{folder.name}/*.mhd")
        for path in sorted(folder.glob(pattern))
        if not path.name.startswith(".")
    }


def _scan(
    uid: str,
    header: Path,
    candidates: tuple[Candidate, ...],
    nodules: tuple[Nodule, ...] | None,
    series: NbiaSeries | None,
) -> _Scan:
    try:
        x, y, z = read_header(header).spacing_mm
        spacing_mm = (x, y, z)
    except UnreadableImageError:
        # Reading the image says why.
        spacing_mm = None
    subset = next(
        match[1] for part in header.parts[::-1] if (match := _SUBSET.fullmatch(part)) is not None
    )
    return _Scan(
        uid=uid,
        header=header,
        subset=subset,
        patient=series.subject if series and series.subject else uid,
        manufacturer=series.manufacturer if series else "",
        spacing_mm=spacing_mm,
        candidates=candidates,
        nodules=nodules,
    )


def _voxel_file(header: Path) -> Path | None:
    try:
        data = read_header(header).data
    except UnreadableImageError:
        return None
    return data if data.is_file() else None


def _record(scan: _Scan, one: Candidate, table: str) -> SourceRecord:
    # The nearest first: diameters of others are not the candidate's.
    inside = sorted(
        (math.dist(one.place_mm, nodule.place_mm), nodule.diameter_mm)
        for nodule in scan.nodules or ()
        if math.dist(one.place_mm, nodule.place_mm) <= nodule.diameter_mm / 2
    )
    return SourceRecord(
        record_id=f"{scan.uid}-{one.line}",
        patient_id=scan.patient,
        labels=(CLASSES[one.is_nodule],),
        source=f"{table} line {one.line} (subset{scan.subset}/{scan.header.name})",
        read_image=functools.partial(read_cube, scan.header, one.place_mm),
        read_mask=functools.partial(read_balls, scan.header, one.place_mm, scan.nodules)
        if scan.nodules is not None
        else None,
        columns={
            "subset": scan.subset,
            "manufacturer": scan.manufacturer,
            "diameter_mm": f"{inside[0][1]:.2f}" if inside else "",
        },
        spacing_mm=scan.spacing_mm,
    )


def _digest(root: Path, contents: Sequence[bytes], scans: Sequence[_Scan]) -> str:
    with known_digests(root) as digest:
        rows = [(scan.uid, digest(scan.header), digest(_voxel_file(scan.header))) for scan in scans]
    tables = [hashlib.sha256(content).hexdigest() for content in contents]
    return dataset_digest(_LOADER, [tables, *rows])
