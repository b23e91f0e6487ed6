"""What a site keeps of a run's model for itself, round by round; none of it ever leaves.

In the state folder, `personal/<run>/`:

    round-00007.safetensors    what it was after round 7; its header has names, digest, and the
                               number that each round until then learned (APFL's alpha)

A round starts from what the last one before it left, so a round that is asked for again, after a
kill here or at the server, starts from the same and ends in the same bits. Two are kept: what the
latest round left, and what it started from. Asked for round r, a site forgets what later rounds of
its left: the run stands before r, so they are of a branch that was given up.

What is damaged is as if it had never been: the site begins anew from the global weights, as one
that joins late does. Nothing here decides what is charged.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medfed.common.errors import MessageError
from medfed.common.files import make_private, write_secret
from medfed.common.state_dicts import StateDict, check_fits, digest

log = logging.getLogger(__name__)

PERSONAL_FOLDER = "personal"
_FILE = re.compile(r"round-(\d+)\.safetensors")
_LONGEST_NAME = 60


class OwnParts:
    """The parts of one run at one site.

    Args:
        state_folder: The site's.
        run: The run's identifier.
        study_digest: `StudyConfig.digest`: another study under the same name has its own.
    """

    def __init__(self, state_folder: Path, run: str, study_digest: str) -> None:
        # The server chose the name: it must not lead anywhere else.
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", run)[:_LONGEST_NAME]
        unique = hashlib.sha256(f"{run}\x1f{study_digest}".encode()).hexdigest()[:16]
        self.folder = state_folder / PERSONAL_FOLDER / f"{readable}-{unique}"

    def after(self, round_number: int, expected: StateDict) -> StateDict | None:
        """Return the part as it is after a round: as the last round that trained here left it.

        Args:
            round_number: 1-based; 0 for before the first.
            expected: Arrays with the names, shapes and types that it must have.

        Returns:
            None if no round until then trained here, or its file is damaged.
        """
        earlier = [number for number in self._rounds() if number <= round_number]
        if not earlier:
            return None
        path = self._path(max(earlier))
        try:
            return _read(path, expected)
        except (OSError, SafetensorError, MessageError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s): its site begins anew.", path.name, error)
            return None

    def learned(self, round_number: int) -> dict[int, float]:
        """Return the numbers that `keep` was given, by round, as `after` has its part.

        They are for reading only, and none where no file can be read.
        """
        earlier = [number for number in self._rounds() if number <= round_number]
        return _read_learned(self._path(max(earlier))) if earlier else {}

    def keep(self, round_number: int, part: StateDict, learned: float | None = None) -> None:
        """Keep what a round left, and the one before it; forget all others.

        Args:
            round_number: 1-based.
            part: What the round left.
            learned: A number within it that a report shows by round; None where there is none.

        Raises:
            OSError: It could not be written: the round's update must not leave.
        """
        make_private(self.folder)
        for half in self.folder.glob(".*.tmp"):
            half.unlink()  # of a process that was killed
        # In the same file: a kill cannot part them.
        numbers = (
            {} if learned is None else {**self.learned(round_number - 1), round_number: learned}
        )
        write_secret(self._path(round_number), _pack(part, numbers))
        before = [number for number in self._rounds() if number < round_number]
        for number in self._rounds():
            if number not in (round_number, max(before, default=0)):
                self._path(number).unlink()

    def _path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:05d}.safetensors"

    def _rounds(self) -> list[int]:
        if not self.folder.exists():
            return []
        found = (_FILE.fullmatch(path.name) for path in self.folder.iterdir())
        return [int(match[1]) for match in found if match]


def _pack(part: StateDict, learned: Mapping[int, float]) -> bytes:
    # The file sorts names its own way.
    facts: dict[str, object] = {"names": list(part), "sha256": digest(part)}
    if learned:
        facts["learned"] = learned
    arrays = {name: np.asarray(array, order="C") for name, array in part.items()}
    packed: bytes = save(arrays, {"medfed": json.dumps(facts)})
    return packed


def _read_learned(path: Path) -> dict[int, float]:
    try:
        with safe_open(path, framework="np") as file:
            found = json.loads(file.metadata()["medfed"]).get("learned", {})
        return {int(number): float(value) for number, value in found.items()}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _read(path: Path, expected: StateDict) -> StateDict:
    with safe_open(path, framework="np") as file:
        facts: Mapping[str, object] = json.loads(file.metadata()["medfed"])
        names = facts["names"]
        if not isinstance(names, list):
            raise TypeError("its names are no list")
        part: StateDict = {name: file.get_tensor(name) for name in names}
    if digest(part) != facts["sha256"]:
        raise ValueError("it is not what was kept")
    check_fits(expected, part)
    return part
