"""Brings queued runs to their end, one at a time, whatever dies on the way.

waiting -> running    submitted to Flower, which has its SuperExec start a ServerApp
running -> finished   the ServerApp wrote so into the arm's folder
running -> failed     it wrote so; or it died too often without one more round
running -> waiting    it died: the next try goes on after the last whole round
"""

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from medfed.common.errors import RunError
from medfed.server.federation.control import FlowerRun
from medfed.server.federation.queue import QueuedRun, RunQueue

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
_LONGEST_PAUSE_S = 30.0
# Between fetching a run from Flower and starting its program, and for a look that came too early.
_MISSING_PATIENCE_S = 5.0
_ENDING_PATIENCE_S = 10.0


class Flower(Protocol):
    """What is asked of the SuperLink; see `ControlClient`."""

    def start_run(self, arm: Path) -> int:
        """Submit an arm."""

    def run(self, run_id: int) -> FlowerRun | None:
        """Return a run."""

    def runs(self) -> list[FlowerRun]:
        """Return the latest runs."""

    def stop_run(self, run_id: int) -> None:
        """Stop a run."""


class _Since:
    """How long something has been so without a break."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None

    def seconds(self) -> float:
        """Return the time since the first call after `reset`."""
        if self._began is None:
            self._began = self._clock()
        return self._clock() - self._began

    def reset(self) -> None:
        """Note that it is not so."""
        self._began = None


class Dispatcher:
    """Looks at queue, Flower and processes once a `tick`, and does what is next."""

    def __init__(
        self,
        queue: RunQueue,
        flower: Flower,
        server_apps: Callable[[], list[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._flower = flower
        self._server_apps = server_apps
        self._clock = clock
        self._missing = _Since(clock)
        self._ending = _Since(clock)
        self._not_before = 0.0

    def tick(self) -> None:
        """Do what is next.

        Raises:
            RunError: The SuperLink cannot be asked; nothing is lost, the next tick tries again.
        """
        runs = self._queue.runs()
        running = [run for run in runs if run.state == "running"]
        if running:
            self._follow(running[0])
        elif self._is_clear():
            waiting = [run for run in runs if run.state == "waiting"]
            if waiting and self._clock() >= self._not_before:
                self._start(waiting[0])

    def release(self, reason: str) -> None:
        """Let what runs wait for the next supervisor. Call when its processes have ended."""
        for run in self._queue.runs():
            if run.state == "running":
                self._change(run, lambda run: run.to("waiting", reason))

    def _follow(self, run: QueuedRun) -> None:
        flower = self._flower.run(int(run.flower_runs[-1])) if run.flower_runs else None
        apps = self._server_apps()
        if flower is None or flower.is_over:
            if not self._is_ended(apps):
                return
        else:
            if apps or flower.status == "pending":
                self._missing.reset()
                return
            if self._missing.seconds() < _MISSING_PATIENCE_S and not self._has_outcome(run):
                return
            self._flower.stop_run(flower.run_id)
        self._missing.reset()
        details = flower.details if flower is not None else ""
        self._change(run, lambda run: self._ended(run, details))

    def _has_outcome(self, run: QueuedRun) -> bool:
        return (self._queue.arm(run.name).folder / "outcome.json").exists()

    def _ended(self, run: QueuedRun, details: str) -> QueuedRun:
        """Return where a run stands whose ServerApp is gone."""
        try:
            outcome = self._queue.arm(run.name).read_outcome()
        except RunError as error:
            return run.to("failed", str(error))
        if outcome is not None:
            state = outcome.get("state")
            return run.to(
                "finished" if state == "finished" else "failed", outcome.get("reason", "")
            )
        rounds = self._queue.num_rounds(run.name)
        attempts = 0 if rounds > run.num_rounds_at_start else run.attempts + 1
        what = f"its ServerApp ended early{f' ({details})' if details else ''}"
        _log.warning("Run %s: %s", run.name, what)
        if attempts > MAX_ATTEMPTS:
            why = f"{what}, {attempts} times in a row and without one more round"
            return dataclasses.replace(run.to("failed", why), attempts=attempts)
        self._not_before = self._clock() + min(2.0**attempts - 1, _LONGEST_PAUSE_S)
        why = f"{what}; goes on after round {rounds}"
        return dataclasses.replace(run.to("waiting", why), attempts=attempts)

    def _is_clear(self) -> bool:
        """End what still runs and should not; return whether nothing does."""
        strays = [run for run in self._flower.runs() if not run.is_over]
        for run in strays:
            self._flower.stop_run(run.run_id)
        return self._is_ended(self._server_apps(), patience_s=0.0) and not strays

    def _is_ended(self, apps: list[int], patience_s: float = _ENDING_PATIENCE_S) -> bool:
        """Return whether no ServerApp is left; after a while those left are told to end."""
        if not apps:
            self._ending.reset()
            return True
        waited_s = self._ending.seconds()
        if waited_s >= patience_s:
            final = waited_s >= patience_s + _ENDING_PATIENCE_S
            for pid in apps:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if final else signal.SIGTERM)
        return False

    def _start(self, run: QueuedRun) -> None:
        def submit(run: QueuedRun) -> QueuedRun:
            arm = self._queue.arm(run.name)
            (arm.folder / "outcome.json").unlink(missing_ok=True)
            flower_run = self._flower.start_run(arm.folder)
            _log.info("Run %s is Flower's run %d", run.name, flower_run)
            return dataclasses.replace(
                run.to("running"),
                flower_runs=(*run.flower_runs, str(flower_run)),
                num_rounds_at_start=self._queue.num_rounds(run.name),
            )

        self._change(run, submit)

    def _change(self, seen: QueuedRun, edit: Callable[[QueuedRun], QueuedRun]) -> None:
        """Change a run unless a person did so since it was seen."""
        with self._queue.lock():
            run = self._queue.get(seen.name)
            if run.state == seen.state:
                changed = edit(run)
                self._queue.put(changed)
                if changed.state != run.state:
                    _log.info("Run %s: %s %s", run.name, changed.state, changed.reason)
