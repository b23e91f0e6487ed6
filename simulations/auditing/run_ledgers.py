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
SERVER = "(server)"
"""Stands for the coordinator among the names of sites; no site can be called so."""
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
        server_state: Folder of the coordinator's own ledger, which it keeps under site-level
            privacy.
        attempts: By number, when a round was first begun; a round that failed is begun again.
        turns: With cyclic, by round and site, digests of the weights that the site was sent, in
            attempts that became no round too.
        deployed: Whether the sites are hospitals, which keep their ledgers and their own clocks.
    """

    folder: Path
    study_text: bytes
    run: str
    rounds: dict[int, Table]
    heads: tuple[Table, ...] | None
    begun: datetime | None
    server_state: Path
    attempts: dict[int, datetime]
    turns: dict[tuple[int, str], set[str]]
    deployed: bool

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

    @property
    def site_level(self) -> bool:
        """Whether whole sites are hidden, so that the coordinator keeps a ledger too."""
        return bool(self.study["privacy"]["unit"] == "site")

    @property
    def distributed(self) -> bool:
        """Whether all sites add the noise together, each a share."""
        secure = self.study.get("secure_aggregation", {})
        return bool(secure.get("distributed_noise", "none") != "none")

    @property
    def corrected(self) -> bool:
        """Whether sites were sent corrections of their gradients."""
        return self._algorithm == "scaffold"

    @property
    def in_turn(self) -> bool:
        """Whether each site trained from what the one before made of the weights."""
        return self._algorithm == "cyclic"

    @property
    def in_parts(self) -> bool:
        """Whether each site was sent a part of the weights alone."""
        return self._algorithm == "split"

    @property
    def _algorithm(self) -> str:
        return str(self.study.get("federation", {}).get("algorithm", ""))

    def state_folders(self) -> Iterator[tuple[str, Path]]:
        """Yield (name, state folder) of each ledger: the sites', then the coordinator's."""
        for site in sorted((self.folder / "sites").glob("*/state/ledger.jsonl")):
            yield site.parent.parent.name, site.parent
        if (self.server_state / "ledger.jsonl").exists():
            yield SERVER, self.server_state

    def asked(self, round_number: int) -> list[str]:
        """Return the sites that were asked to train in a completed round."""
        sites = self.rounds[round_number]["sites"]
        return sorted(n for n, entry in sites.items() if entry.get("reason") != _EVALUATION_ONLY)

    def released(self, name: str) -> list[int]:
        """Return the rounds that a ledger must hold: those in which the site's update was used.

        The coordinator's must hold them all: who took part does not matter.
        """
        if name == SERVER:
            return sorted(self.rounds) if self.site_level else []
        return [
            number
            for number, record in sorted(self.rounds.items())
            if record["sites"].get(name, {}).get("status") == "ok" and name in self.asked(number)
        ]

    def used_in(self, name: str) -> dict[int, int]:
        """Return the rounds of `released`, by the round that the ledger names for each.

        With fedbuff that is the round in which the site was asked, which may be an earlier one.
        """
        return {
            int(self.rounds[number]["sites"].get(name, {}).get("asked_in") or number): number
            for number in self.released(name)
        }

    def answered_by(self, name: str, asked_in: int) -> datetime | None:
        """Return when the round was over that took an update, by the round its ledger names.

        None if unknown: with fedbuff an answer that no round took may have come in any.
        """
        taken = self.used_in(name).get(asked_in)
        if taken is None and self._algorithm == "fedbuff":
            return None
        return self.latest(taken or asked_in)

    def printed(self, name: str, round_number: int) -> tuple[float | None, str]:
        """Return the epsilon and the source of noise that a round stated, of `released`."""
        record = self.rounds[round_number]
        if name == SERVER:
            return record.get("site_epsilon"), record.get("site_noise", "none")
        site = record["sites"][name]
        return site.get("epsilon"), site.get("noise", "none")

    def signed(self, name: str) -> list[Table]:
        """Return the heads of a site that the coordinator signed, in its order."""
        return [head for head in self.heads or () if head.get("site") == name]

    def earliest(self, round_number: int) -> datetime | None:
        """Return what a round is later than: when the round before it, or the arm, began.

        Of a round that was repeated, when it was first begun, if that is earlier still: seeded
        noise is not charged again.
        """
        before = self.rounds.get(round_number - 1)
        known = [self.attempts.get(round_number)]
        if before is not None:
            known.append(moment(before["started"]))
        elif round_number == 1:
            known.append(self.begun)
        return min((time for time in known if time is not None), default=None)

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
            "Expected a run folder of `medfed simulate` or `medfed federation run`, with arms, at "
            f"{run}; found none."
        )
    # As `medfed federation run` makes it: a queue's entry, and nothing about simulated sites.
    deployed = (run / "queue.json").exists() and not (run / "simulation.json").exists()
    arms = [_read_arm(folder, deployed=deployed) for folder in folders]
    return sorted(arms, key=lambda arm: (arm.name != "federated", arm.name))


def _read_arm(folder: Path, *, deployed: bool) -> ArmRecord:
    try:
        study_text = (folder / "study.json").read_bytes()
        if not isinstance(json.loads(study_text), dict):
            raise ValueError("study.json is no table")
        rounds = {int(line["round_number"]): line for line in _lines(folder / "rounds.jsonl") or ()}
        heads = _lines(folder / "heads.jsonl")
        events = _lines(folder / "events.jsonl") or ()
        plan = json.loads((folder / "plan.json").read_text("utf-8"))
        attempts: dict[int, datetime] = {}
        turns: dict[tuple[int, str], set[str]] = {}
        for event in events:
            if event["event"] == "turn":
                turn = turns.setdefault((int(event["round"]), str(event["site"])), set())
                turn.add(str(event["weights_sha256"]))
            if event["event"] == "round":
                attempts.setdefault(int(event["round"]), moment(event["time"]))
        return ArmRecord(
            folder=folder,
            study_text=study_text,
            run=str(plan["run"]),
            rounds=rounds,
            heads=heads,
            begun=moment(events[0]["time"]) if events else None,
            server_state=Path(plan.get("server_state") or folder / "server_state"),
            attempts=attempts,
            turns=turns,
            deployed=deployed,
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
