"""annotations.json at a site: who was labelled at which of the annotator's visits, run by run.

It lies beside the ledger and never leaves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medfed.common.errors import DataError, RunError
from medfed.common.files import read_json, write_json

ANNOTATIONS_FILE = "annotations.json"


class Visit(NamedTuple):
    """One visit of the annotator: its number from 1, the round that it preceded, whom it labelled.

    `patients` are pseudonyms, in the order in which they were chosen.
    """

    number: int
    round_number: int
    patients: tuple[str, ...]


def read_visits(path: Path, run: str) -> list[Visit]:
    """Return the visits of a run, in order; none if there is no file.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return [
            Visit(int(row["visit"]), int(row["round"]), tuple(map(str, row["patients"])))
            for row in _table(path).get(run, [])
        ]
    except (RunError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Bring it back from a backup, or delete it and start "
            "the run again: it says whose labels are known."
        ) from None


def write_visits(path: Path, run: str, visits: Sequence[Visit]) -> None:
    """Write the visits of a run beside those of other runs."""
    rows = [
        {"visit": visit.number, "round": visit.round_number, "patients": list(visit.patients)}
        for visit in visits
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**_table(path), run: rows})


def _table(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
