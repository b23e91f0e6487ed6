"""Live progress of a run, read from its arms' `events.jsonl`: the same for every grid.

On a terminal: one line an arm with round, sites done, metric, epsilon so far and time left.
Elsewhere (a log, CI): one line a completed round.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task

_POLL_S = 0.25
_STATES = ("started", "words", "statistics", "round", "trained", "completed", "finished", "failed")
Preparing = Callable[[int, int], None]


@dataclass
class _Arm:
    """What is shown of one arm."""

    round_number: int = 0
    rounds: int = 0
    asked: int = 0
    trained: int = 0
    metric: float | None = None
    epsilon: float | None = None
    state: str = "waiting"
    position: int = 0

    @property
    def completed(self) -> int:
        """Rounds that are complete."""
        return self.round_number - (self.state in ("round", "trained"))


@contextmanager
def show_progress(run: Path, study: StudyConfig, console: Console) -> Iterator[Preparing]:
    """Show the run until the block ends; yields what preparation reports to."""
    display = _Display(run, study, console)
    # What an earlier start of this run did is taken in, not told again.
    display.refresh(announce=False)
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(_POLL_S):
            display.refresh()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    with display.bars:
        thread.start()
        try:
            yield display.preparing
        finally:
            stop.set()
            thread.join()
            display.refresh()


class _Display:
    def __init__(self, run: Path, study: StudyConfig, console: Console) -> None:
        self._run = run
        self._study = study
        self._leading = make_task(study).figures[0]
        self._console = console
        self._lines = not console.is_terminal
        self._arms: dict[str, _Arm] = {}
        self._tasks: dict[str, TaskID] = {}
        self._prepared: TaskID | None = None
        self._whole: TaskID | None = None
        self.bars = Progress(
            TextColumn("[bold]{task.description:<18}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=self._lines or console.quiet,
        )

    def preparing(self, done: int, total: int) -> None:
        """Show how many images of the data set are prepared."""
        if self._lines:
            if done == total:
                self._console.print(f"prepared {total} images")
            return
        if self._prepared is None:
            self._prepared = self.bars.add_task("preparing", total=total, note="")
        self.bars.update(self._prepared, completed=done, note=f"{done}/{total} images")

    def refresh(self, *, announce: bool = True) -> None:
        """Read what is new in every arm's events and show it."""
        for path in sorted((self._run / "arms").glob("*/events.jsonl")):
            name = path.parent.name
            arm = self._arms.setdefault(name, _Arm())
            for event in _new_events(path, arm):
                self._apply(name, arm, event)
                if announce:
                    self._announce(name, arm, event)
            if not self._lines and arm.rounds:
                self._show(name, arm)
        if not self._lines:
            self._show_all()

    def _apply(self, name: str, arm: _Arm, event: dict[str, Any]) -> None:
        kind = event["event"]
        # Of sites that are away or waited for `medfed federation status` tells.
        if kind in _STATES:
            arm.state = kind
        if kind == "started":
            arm.rounds, arm.round_number = event["rounds"], event["after"]
        elif kind == "round":
            arm.round_number, arm.asked, arm.trained = event["round"], event["sites"], 0
        elif kind == "trained":
            arm.trained += 1
        elif kind == "completed":
            if event["metrics"]:
                arm.metric = event["metrics"].get(self._leading.key)
            arm.epsilon = event["epsilon"] if event["epsilon"] is not None else arm.epsilon

    def _announce(self, name: str, arm: _Arm, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "completed" and self._lines:
            self._console.print(f"{name}: {self._note(arm)}", highlight=False)
        elif kind == "words" and self._lines:
            text = f"{event['words']} words agreed from {event['sites']} sites"
            self._console.print(f"{name}: {text}", highlight=False)
        elif kind == "statistics" and self._lines:
            text = f"{event['sites']} of {event['asked']} sites described their training data"
            self._console.print(f"{name}: {text}", highlight=False)
        elif kind in ("failed", "refused") or (kind == "finished" and event["reason"]):
            self._console.print(f"{name}: {kind}: {event['reason']}", highlight=False)

    def _show(self, name: str, arm: _Arm) -> None:
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task(name, total=arm.rounds, note="")
        self.bars.update(self._tasks[name], completed=arm.completed, note=self._note(arm))

    def _show_all(self) -> None:
        """The whole study: every arm's rounds, those not started yet included."""
        folders = len(list((self._run / "arms").glob("*/plan.json")))
        if folders < 2 or not self._arms:
            return
        total = folders * self._study.training.rounds
        if self._whole is None:
            self._whole = self.bars.add_task("all arms", total=total, note="")
        done = sum(arm.completed for arm in self._arms.values())
        self.bars.update(self._whole, completed=done, note=f"{done}/{total} rounds")

    def _note(self, arm: _Arm) -> str:
        parts = [f"round {arm.round_number}/{arm.rounds}"]
        if arm.state in ("round", "trained"):
            parts.append(f"{arm.trained}/{arm.asked} sites")
        if arm.metric is not None:
            parts.append(f"{self._leading.title} {arm.metric:.3f}")
        if arm.epsilon is not None:
            delta = self._study.privacy.target_delta
            parts.append(f"epsilon {arm.epsilon:.2f} a {self._study.privacy.unit} at {delta:g}")
        return "  ".join(parts)


def _new_events(path: Path, arm: _Arm) -> list[dict[str, Any]]:
    """Return the whole lines since the last call."""
    with path.open("rb") as file:
        file.seek(arm.position)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    arm.position += len(whole)
    return [json.loads(line) for line in whole.splitlines()]
