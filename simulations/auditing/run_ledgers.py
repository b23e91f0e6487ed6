"""What a run folder says about one arm, read as plain JSON: nothing of the trainer is asked."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from medfed.common.errors import RunError

Table = dict[str, Any]
_EVALUATION_ONLY = "evaluation only"


@dataclass(frozen=True)
class ArmRecord:
    """One arm's own words on what happened.

    Attributes:
        folder: The arm's folder.
        study_text: study.json; its SHA-256 is the study's digest.
        run: The run's identifier in ledgers.
        rounds: Records of completed rounds, by number.
        heads: Lines of heads.jsonl; None if the coordinator kept none.
        begun: When the arm first started; None if unknown.
    """

    folder: Path
    study_text: bytes
    run: str
    rounds: dict[int, Table]
    heads: tuple[Table, ...] | None
    begun: datetime | None

    @property
    def name(self) -> str:
        """Name of the arm."""
        return self.folder.name

    @property
    def study_digest(self) -> str:
        """Digest of the study as ledgers name it."""
        return hashlib.sha256(self.study_text).hexdigest()

    @cached_property
    def study(self) -> Table:
        """The study as a table."""
        table = json.loads(self.study_text)
        assert isinstance(table, dict)  # read_arm has looked
        return table

    def state_folders(self) -> Iterator[tuple[str, Path]]:
        """Yield (site, state folder) of each site that has a ledger."""
        for site in sorted((self.folder / "sites").glob("*/state/ledger.jsonl")):
            yield site.parent.parent.name, site.parent

    def trained(self, site: str) -> list[int]:
        """Return the rounds in which the site trained and its update was used."""
        return [
            number
            for number, record in sorted(self.rounds.items())
            if (entry := record["sites"].get(site)) is not None
            and entry["status"] == "ok"
            and entry.get("reason") != _EVALUATION_ONLY
        ]

    def weights_before(self, round_number: int) -> str | None:
        """Return the digest of the weights that a round started from; None of the first."""
        record = self.rounds.get(round_number - 1)
        return None if record is None else str(record["weights_sha256"])

    def earliest(self, round_number: int) -> datetime | None:
        """Return what a round is later than: when the round before it, or the arm, began."""
        before = self.rounds.get(round_number - 1)
        if before is None:
            return self.begun if round_number == 1 else None
        return moment(before["started"])

    def latest(self, round_number: int) -> datetime | None:
        """Return when a round was over."""
        record = self.rounds.get(round_number)
        if record is None:
            return None
        return moment(record["started"]) + timedelta(seconds=record["seconds"])


def moment(text: str) -> datetime:
    """Read a time of a record."""
    return datetime.fromisoformat(text)


def read_arms(run: Path) -> list[ArmRecord]:
    """Return the arms of a run that have started.

    Raises:
        RunError: No run folder, or a damaged file.
    """
    folders = sorted(path.parent for path in (run / "arms").glob("*/study.json"))
    if not folders:
        raise RunError(
            f"Expected a run folder of `medfed simulate`, with arms, at {run}; found none."
        )
    arms = [_read_arm(folder) for folder in folders]
    return sorted(arms, key=lambda arm: (arm.name != "federated", arm.name))


def _read_arm(folder: Path) -> ArmRecord:
    try:
        study_text = (folder / "study.json").read_bytes()
        if not isinstance(json.loads(study_text), dict):
            raise ValueError("study.json is no table")
        rounds = {int(line["round_number"]): line for line in _lines(folder / "rounds.jsonl") or ()}
        heads = _lines(folder / "heads.jsonl")
        events = _lines(folder / "events.jsonl") or ()
        return ArmRecord(
            folder=folder,
            study_text=study_text,
            run=str(json.loads((folder / "plan.json").read_text("utf-8"))["run"]),
            rounds=rounds,
            heads=heads,
            begun=moment(events[0]["time"]) if events else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} is damaged ({type(error).__name__}: {error}). Audit a whole run folder, or "
            "a single site's ledger."
        ) from None


def _lines(path: Path) -> tuple[Table, ...] | None:
    """Return the tables of a file of JSON lines; a torn last line is left out."""
    if not path.exists():
        return None
    return tuple(json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1])
