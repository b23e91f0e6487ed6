"""LUNA16's tables: candidates, of which some are chosen, and annotated nodules."""

import hashlib
import heapq
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.common.errors import DataError
from medfed.simulations.datasets.luna16_cubes import Nodule, Place
from medfed.simulations.datasets.tables import Table, read_table

logger = logging.getLogger(__name__)

_CANDIDATES = (
    "candidates_V2.csv",
    "candidates_V2/candidates_V2.csv",
    "CSVFILES/candidates_V2.csv",
    "candidates.csv",
    "CSVFILES/candidates.csv",
)
_ANNOTATIONS = ("annotations.csv", "CSVFILES/annotations.csv")
_PLACE = ("coordX", "coordY", "coordZ")
_OTHERS_PER_SCAN = 10
_HOW = "Fetch it from https://zenodo.org/records/3723295 again."


@dataclass(frozen=True)
class Candidate:
    """A row of the candidates: its line, its place to the left, posterior, superior."""

    line: int
    place_mm: Place
    is_nodule: bool


def find_candidates(root: Path) -> Path | None:
    """Return the table of candidates, the second version before the first, if there is one."""
    return _first(root, _CANDIDATES)


def read_candidates(path: Path, scans: Collection[str]) -> Table:
    """Return the table at `path`; warn of candidates of other scans than `scans`.

    Raises:
        DataError: Not such a table.
    """
    columns = ("seriesuid", *_PLACE, "class")
    table = read_table(path, columns=columns, keys=columns, how_to_get=_HOW)
    missing = {row["seriesuid"] for row in table.rows.values()} - set(scans)
    if missing:
        logger.warning(
            "%d scan(s) of %s are not in the subsets here: their candidates are not used.",
            len(missing),
            path.name,
        )
    return table


def read_annotations(root: Path) -> Table | None:
    """Return the table of annotated nodules, if there is one.

    Raises:
        DataError: Not such a table.
    """
    path = _first(root, _ANNOTATIONS)
    if path is None:
        logger.warning("There is no %s: candidates have no masks.", _ANNOTATIONS[0])
        return None
    columns = ("seriesuid", *_PLACE, "diameter_mm")
    return read_table(path, columns=columns, keys=columns, how_to_get=_HOW)


def nodules_of(table: Table) -> dict[str, list[Nodule]]:
    """Return the annotated nodules by scan.

    Raises:
        DataError: What is no number. Says line and column.
    """
    nodules: dict[str, list[Nodule]] = defaultdict(list)
    for line, row in table.rows.items():
        diameter = _number(table.path, line, "diameter_mm", row["diameter_mm"])
        nodules[row["seriesuid"]].append(Nodule(_place(table.path, line, row), diameter))
    return nodules


def choose_candidates(table: Table, scans: Collection[str]) -> dict[str, list[Candidate]]:
    """Return by scan of `scans` all nodules, and the ten others whose hashes are the smallest.

    Raises:
        DataError: Another class, or what is no number. Says line and column.
    """
    lines: dict[str, list[int]] = defaultdict(list)
    others: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for line, row in table.rows.items():
        uid = row["seriesuid"]
        if uid not in scans:
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
            Candidate(
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


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)
