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
import heapq
import logging
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.known_digests import known_digests
from medfed.simulations.datasets.luna16_cubes import Nodule, Place, read_balls, read_cube
from medfed.simulations.datasets.metaimage import read_header
from medfed.simulations.datasets.nbia import NbiaSeries, read_nbia_metadata
from medfed.simulations.datasets.tables import Table, read_table

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

_CANDIDATES = (
    "candidates_V2.csv",
    "candidates_V2/candidates_V2.csv",
    "CSVFILES/candidates_V2.csv",
    "candidates.csv",
    "CSVFILES/candidates.csv",
)
_ANNOTATIONS = ("annotations.csv", "CSVFILES/annotations.csv")
_PLACE = ("coordX", "coordY", "coordZ")
_SUBSET = re.compile(r"subset(\d)")

_OTHERS_PER_SCAN = 10

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "luna16 loader 1"


@dataclass(frozen=True)
class _Candidate:
    """A row of the candidates."""

    line: int
    place_mm: Place
    is_nodule: bool


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
    candidates: tuple[_Candidate, ...]
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
        lambda root: _first(root, _CANDIDATES) is not None and bool(_subset_folders(root)),
        name="LUNA16",
        expected=f"{_CANDIDATES[0]} and subset0/ or others",
        how_to_get=HOW_TO_GET,
    )
    headers = _find_headers(root)
    candidates = _read_candidates(root, headers)
    annotations = _read_annotations(root)
    series, metadata = read_nbia_metadata(root, how_to_get=HOW_TO_GET)
    chosen = _choose(candidates, headers)
    if not chosen:
        raise DataError(
            f"{candidates.path}: none of its scans is in the subsets of {root}. {HOW_TO_GET}"
        )
    nodules = _nodules(annotations)
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
    with known_digests(root) as digest:
        rows = [(scan.uid, digest(scan.header), digest(_voxel_file(scan.header))) for scan in scans]
    contents = [table.content if table else b"" for table in (candidates, annotations)]
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
        digest=dataset_digest(
            _LOADER,
            [[hashlib.sha256(part).hexdigest() for part in (*contents, metadata)], *rows],
        ),
        structures=STRUCTURES,
        dimensions=3,
    )


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


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


def _read_candidates(root: Path, headers: Mapping[str, Path]) -> Table:
    path = _first(root, _CANDIDATES)
    assert path is not None  # `find_root` has seen it
    columns = ("seriesuid", *_PLACE, "class")
    table = read_table(path, columns=columns, keys=columns, how_to_get=HOW_TO_GET)
    missing = {row["seriesuid"] for row in table.rows.values()} - headers.keys()
    if missing:
        logger.warning(
            "%d scan(s) of %s are not in the subsets here: their candidates are not used.",
            len(missing),
            path.name,
        )
    return table


def _read_annotations(root: Path) -> Table | None:
    path = _first(root, _ANNOTATIONS)
    if path is None:
        logger.warning("There is no %s: candidates have no masks.", _ANNOTATIONS[0])
        return None
    columns = ("seriesuid", *_PLACE, "diameter_mm")
    return read_table(path, columns=columns, keys=columns, how_to_get=HOW_TO_GET)


def _nodules(table: Table | None) -> dict[str, list[Nodule]]:
    nodules: dict[str, list[Nodule]] = defaultdict(list)
    for line, row in table.rows.items() if table else ():
        assert table is not None
        diameter = _number(table.path, line, "diameter_mm", row["diameter_mm"])
        nodules[row["seriesuid"]].append(Nodule(_place(table.path, line, row), diameter))
    return nodules


def _choose(table: Table, headers: Mapping[str, Path]) -> dict[str, list[_Candidate]]:
    """By scan that is here: all nodules, and the others whose hashes are the smallest."""
    lines: dict[str, list[int]] = defaultdict(list)
    others: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for line, row in table.rows.items():
        uid = row["seriesuid"]
        if uid not in headers:
            continue
        if row["class"] not in ("0", "1"):
            raise DataError(
                f"{table.path} line {line}, column class: expected 0 or 1, got {row['class']!r}. "
                "Restore the published row."
            )
        if row["class"] == "1":
            lines[uid].append(line)
        else:
            # Not by line, so that an order of the rows changes nothing.
            key = ",".join((uid, *(row[name] for name in _PLACE)))
            others[uid].append((hashlib.sha256(key.encode()).digest(), line))
    for uid, own in others.items():
        lines[uid] += [line for _, line in heapq.nsmallest(_OTHERS_PER_SCAN, own)]
    return {
        uid: [
            _Candidate(
                line, _place(table.path, line, table.rows[line]), table.rows[line]["class"] == "1"
            )
            for line in sorted(own)
        ]
        for uid, own in lines.items()
    }


def _place(path: Path, line: int, row: Mapping[str, str]) -> Place:
    x, y, z = (_number(path, line, name, row[name]) for name in _PLACE)
    return x, y, z


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{path} line {line}, column {name}: expected a number of mm, got {text!r}. Restore "
            "the published row."
        )
    return value


def _scan(
    uid: str,
    header: Path,
    candidates: tuple[_Candidate, ...],
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


def _record(scan: _Scan, one: _Candidate, table: str) -> SourceRecord:
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
