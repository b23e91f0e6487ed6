"""The runs of a federation, one folder each, and where each stands: `queue.json`."""

import dataclasses
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from medfed.common.enrolment import check_name
from medfed.common.errors import RunError
from medfed.common.files import read_json, sync_folder, write_atomically, write_json
from medfed.common.ledger.keys import alone
from medfed.common.study import StudyConfig
from medfed.common.study_file import study_to_toml
from medfed.server.federation.home import FederationHome
from medfed.server.federation.registry import Registry
from medfed.server.records import ArmFolder, RunPlan
from medfed.server.words import read_public_words, write_vocabulary

RunState = Literal["waiting", "running", "finished", "failed", "stopped"]
ENDED: tuple[RunState, ...] = ("finished", "failed", "stopped")

QUEUE_FILE = "queue.json"


@dataclass(frozen=True, kw_only=True)
class QueuedRun:
    """A run and where it stands.

    Attributes:
        name: Of its folder.
        state: waiting for its turn (or for another try); running; finished; failed; stopped by a
            person. All but finished can go on.
        reason: Why it is in this state, in words; may be empty.
        submitted: When it was queued, or queued again; ISO 8601, UTC.
        attempts: Tries in a row that ended early without one more round.
        flower_runs: Flower's numbers of its tries, oldest first.
        num_rounds_at_start: Complete rounds when the latest try began.
    """

    name: str
    state: RunState
    submitted: str
    reason: str = ""
    attempts: int = 0
    flower_runs: tuple[str, ...] = ()
    num_rounds_at_start: int = 0

    def to(self, state: RunState, reason: str = "") -> "QueuedRun":
        """Return the run in another state."""
        return dataclasses.replace(self, state=state, reason=reason)


class RunQueue:
    """The runs in `home`. The supervisor and commands change them, each under `lock`."""

    def __init__(self, home: FederationHome) -> None:
        self._home = home
        self._folder = home.runs_folder

    def folder(self, name: str) -> Path:
        """Return a run's folder, there or not.

        Raises:
            FederationError: The name is none.
        """
        return self._folder / check_name(name)

    def arm(self, name: str) -> ArmFolder:
        """Return the folder of a run's one arm."""
        return ArmFolder(self.folder(name) / "arms" / "federated")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from changing a run's state. Does not nest."""
        self._folder.mkdir(exist_ok=True, mode=0o700)
        with alone(self._folder / ".lock"):
            yield

    def submit(self, study: StudyConfig, name: str, environment: dict[str, Any]) -> QueuedRun:
        """Make a run's folder and queue it.

        Args:
            study: Validated, with the files that it names.
            name: Of the folder; new.
            environment: What the result came from, for `environment.json`.

        Raises:
            RunError: The name is taken; or fewer sites are approved than the study's quorum.
            StudyError: A vocabulary file that cannot be read.
        """
        plan = self._plan(study, name)
        folder = self.folder(name)
        draft = folder.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            self._write(draft, study, name, plan, environment)
            run = QueuedRun(name=name, state="waiting", submitted=now())
            write_json(draft / QUEUE_FILE, asdict(run))
            with self.lock():
                if folder.exists():
                    raise RunError(
                        f"{folder} exists already. Go on with it: `medfed federation run "
                        f"--resume {name}`; or give this run another --name."
                    )
                draft.rename(folder)
                sync_folder(self._folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return run

    def resume(self, name: str) -> QueuedRun:
        """Queue a run again that failed or was stopped; it goes on after its last whole round.

        Raises:
            RunError: It has finished, or has not ended.
        """
        with self.lock():
            run = self.get(name)
            if run.state == "finished":
                raise RunError(f"Run {name} has finished: there is nothing to go on with.")
            if run.state not in ENDED:
                raise RunError(f"Run {name} is {run.state} already: it goes on by itself.")
            (self.arm(name).folder / "outcome.json").unlink(missing_ok=True)
            waiting = dataclasses.replace(run.to("waiting"), submitted=now(), attempts=0)
            self.put(waiting)
        return waiting

    def stop(self, name: str) -> QueuedRun:
        """Stop a run. The supervisor ends its processes; the last whole round stays.

        Raises:
            RunError: It has ended.
        """
        with self.lock():
            run = self.get(name)
            if run.state in ENDED:
                raise RunError(f"Run {name} is {run.state}: there is nothing to stop.")
            stopped = run.to("stopped", "stopped by a person")
            self.put(stopped)
        return stopped

    def runs(self) -> list[QueuedRun]:
        """Return every run, the one queued first in front. One that is damaged has failed."""
        found = []
        for path in self._folder.glob(f"*/{QUEUE_FILE}"):
            name = path.parent.name
            if name.startswith("."):
                continue
            try:
                found.append(_read(path))
            except RunError as error:
                found.append(QueuedRun(name=name, state="failed", submitted="", reason=str(error)))
        return sorted(found, key=lambda run: (run.submitted, run.name))

    def get(self, name: str) -> QueuedRun:
        """Return a run.

        Raises:
            RunError: There is none of this name, or its queue.json is damaged.
        """
        path = self.folder(name) / QUEUE_FILE
        if not path.exists():
            known = ", ".join(run.name for run in self.runs()) or "none"
            raise RunError(f"Expected a run of this federation, got {name!r}. There are: {known}.")
        return _read(path)

    def put(self, run: QueuedRun) -> None:
        """Write where a run stands. Hold `lock` from reading to writing."""
        write_json(self.folder(run.name) / QUEUE_FILE, asdict(run))

    def num_rounds(self, name: str) -> int:
        """Return how many rounds a run has completed."""
        try:
            return (self.arm(name).folder / "rounds.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def _plan(self, study: StudyConfig, name: str) -> RunPlan:
        records = Registry(self._home.sites_folder).records()
        approved = sum(record.state == "approved" for record in records)
        quorum = study.federation.min_sites
        if approved < quorum:
            raise RunError(
                f"Expected at least {quorum} approved sites (federation.min_sites), got "
                f"{approved}. Approve sites: `medfed federation approve SITE`; or lower the quorum."
            )
        return RunPlan(
            # Sites' ledgers name a run by this: it must never come again.
            run=f"{name}-{secrets.token_hex(4)}/federated",
            min_sites=quorum,
            expected_sites=approved,
            server_state=str(self._home.server_state),
            rejections=str(self._home.rejections_file),
        )

    def _write(
        self,
        folder: Path,
        study: StudyConfig,
        name: str,
        plan: RunPlan,
        environment: dict[str, Any],
    ) -> None:
        folder.mkdir(parents=True, mode=0o700)
        write_atomically(folder / "study.toml", study_to_toml(study).encode())
        write_json(folder / "run.json", {"run": name, "data": "", "strict": False})
        write_json(folder / "environment.json", environment)
        arm = ArmFolder(folder / "arms" / "federated")
        arm.write_plan(plan)
        write_atomically(arm.folder / "study.json", study.for_sites().to_json().encode())
        if study.task.report.vocabulary:
            write_vocabulary(arm.folder, read_public_words(Path(study.task.report.vocabulary)))


def now() -> str:
    """Return the time as runs state it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(path: Path) -> QueuedRun:
    try:
        table = read_json(path)
        run = QueuedRun(**{**table, "flower_runs": tuple(table["flower_runs"])})
        if run.state not in get_args(RunState) or run.name != path.parent.name:
            raise ValueError(f"state {run.state!r} of run {run.name!r}")
        if not isinstance(run.attempts, int) or not all(map(str.isdecimal, run.flower_runs)):
            raise ValueError("attempts, flower_runs")
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise RunError(
            f"{path} is damaged ({error}). Restore it from a backup, or start the study under "
            "another --name."
        ) from None
    return run
