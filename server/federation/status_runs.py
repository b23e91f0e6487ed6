"""A run's status from its folder alone: queue.json, and what the ServerApp wrote into its arm."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import cast, get_args

from medfed.server.federation.status_files import (
    Files,
    Signature,
    Table,
    number,
    real,
    signature,
    table_of,
    words,
)
from medfed.server.federation.status_story import Story, follow
from medfed.server.federation.status_types import Doing, Phase, RunStatus, SiteInRun

# The leading figure of each kind of task, `Task.figures[0]`, found without importing torch. A kind
# that has two (findings or not, grades or not) has the one that leads in front.
LEADING = ("kappa", "auroc", "dice", "finding_f1", "bleu4")
_EVALUATION_ONLY = "evaluation only"
_LATEST = 5
_STATES = ("waiting", "running", "finished", "failed", "stopped")


class RunReader:
    """Reads runs; what has not changed since is not read again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Signature, RunStatus, list[str]]] = {}

    def read(self, folder: Path, files: Files, now: datetime) -> RunStatus:
        """Return the status of the run in `folder`; what cannot be read is noted in `files`."""
        arm = folder / "arms" / "federated"
        names = ("plan.json", "study.json", "events.jsonl", "rounds.jsonl", "outcome.json")
        seen = signature([folder / "queue.json", *(arm / name for name in names)])
        known = self._known.get(folder)
        if known is None or known[0] != seen:
            own = Files()
            known = (seen, _read(folder, arm, own), own.unreadable)
            self._known[folder] = known
        files.unreadable += known[2]
        return _at(known[1], now)


def _at(run: RunStatus, now: datetime) -> RunStatus:
    """Fill in what depends on the time."""
    if run.state != "running":
        return run
    started = moment(run.round_started)
    in_round = max(0.0, (now - started).total_seconds()) if started else None
    left = None
    if run.round_s is not None and run.rounds:
        left = max(0.0, run.round_s * (run.rounds - run.completed) - (in_round or 0.0))
    return replace(run, in_round_s=in_round, left_s=left)


def _read(folder: Path, arm: Path, files: Files) -> RunStatus:
    queue, plan = files.table(folder / "queue.json"), files.table(arm / "plan.json")
    study = files.table(arm / "study.json")
    story = follow(files.lines(arm / "events.jsonl"))
    records = [r for r in files.lines(arm / "rounds.jsonl") if number(r.get("round_number"))]
    state = words(queue.get("state"))
    if state not in _STATES:
        state = "unreadable"
    privacy, training = table_of(study.get("privacy")), table_of(study.get("training"))
    completed = number(records[-1]["round_number"]) if records else 0
    is_on = state == "running" and story.round_number > completed
    metric, values = _leading(records)
    return RunStatus(
        name=folder.name,
        state=state,
        reason=words(queue.get("reason")) or _failure(files, arm, state),
        submitted=words(queue.get("submitted")),
        changed=story.time,
        attempts=number(queue.get("attempts")),
        phase=_phase(state, story, is_on=is_on),
        waits_for=story.waits_for if state == "running" else "",
        round_number=story.round_number if is_on else completed,
        completed=completed,
        rounds=story.rounds or number(training.get("rounds")),
        round_started=story.round_started if is_on else "",
        round_s=_round_seconds(records),
        asked=story.asked if is_on else len(_trainers(records[-1])) if records else 0,
        answered=story.num_answered if is_on else _num_ok(records),
        min_sites=number(plan.get("min_sites")),
        metric=metric,
        values=values,
        epsilon=_epsilon(records),
        unit=words(privacy.get("unit")) or "none",
        delta=real(privacy.get("target_delta")) if privacy.get("unit") != "none" else None,
        sites=_sites(records, story, is_on=is_on),
    )


def _failure(files: Files, arm: Path, state: str) -> str:
    outcome = files.table(arm / "outcome.json") if state in ("finished", "failed") else {}
    return words(outcome.get("reason"))


def _phase(state: str, story: Story, *, is_on: bool) -> Phase:
    if state != "running":
        return ""
    if story.last == "waiting":
        return "waiting"
    if is_on:
        return "evaluating" if 0 < story.asked <= story.num_answered else "training"
    return "between rounds" if story.round_number else "joining"


def _trainers(record: Table) -> dict[str, Table]:
    sites = table_of(record.get("sites"))
    rows = {name: table_of(site) for name, site in sites.items()}
    return {name: row for name, row in rows.items() if row.get("reason") != _EVALUATION_ONLY}


def _num_ok(records: Sequence[Table]) -> int:
    rows = _trainers(records[-1]).values() if records else ()
    return sum(row.get("status") == "ok" for row in rows)


def _leading(records: Sequence[Table]) -> tuple[str, tuple[tuple[int, float], ...]]:
    found = [(number(r["round_number"]), table_of(r.get("metrics"))) for r in records]
    keys = [key for key in LEADING if any(key in metrics for _, metrics in found)]
    if not keys:
        return "", ()
    values = [(place, real(metrics.get(keys[0]))) for place, metrics in found]
    return keys[0], tuple((place, value) for place, value in values if value is not None)


def _round_seconds(records: Sequence[Table]) -> float | None:
    known = [real(record.get("seconds")) for record in records[-_LATEST:]]
    return statistics.median([s for s in known if s is not None]) if any(known) else None


def _epsilon(records: Sequence[Table]) -> float | None:
    of_server = [real(record.get("site_epsilon")) for record in records]
    if known := [value for value in of_server if value is not None]:
        return known[-1]
    sites = [real(row.get("epsilon")) for r in records for row in _trainers(r).values()]
    return max((value for value in sites if value is not None), default=None)


def _sites(records: Sequence[Table], story: Story, *, is_on: bool) -> dict[str, SiteInRun]:
    found: dict[str, SiteInRun] = {}
    for record in records:
        trainers = _trainers(record)
        for name, row in table_of(record.get("sites")).items():
            before = found.get(name, SiteInRun())
            found[name] = _after(before, table_of(row), record, asked=name in trainers)
    for name, reason in story.refusals:
        before = found.get(name, SiteInRun())
        found[name] = replace(before, refusals=_plus(before.refusals, reason))
    doing: dict[str, tuple[Doing, str]] = {
        name: ("refused", reason) for name, reason in story.turned_away.items()
    }
    if is_on:
        doing |= story.doing
    elif records:
        last = _trainers(records[-1]).items()
        doing |= {name: (_status(row), words(row.get("reason"))) for name, row in last}
    for name in story.joined | doing.keys():
        what, why = doing.get(name, ("", ""))
        found[name] = replace(found.get(name, SiteInRun()), doing=what, why=why)
    return dict(sorted(found.items()))


def _after(before: SiteInRun, row: Table, record: Table, *, asked: bool) -> SiteInRun:
    """Add one round to what is known of a site."""
    status, reason = words(row.get("status")), words(row.get("reason"))
    epsilon = real(row.get("epsilon"))
    after = replace(
        before,
        bytes_down=before.bytes_down + number(row.get("bytes_down")),
        bytes_up=before.bytes_up + number(row.get("bytes_up")),
        epsilon=before.epsilon if epsilon is None else epsilon,
    )
    if status == "ok" and asked:
        place, at = number(record["round_number"]), words(record.get("started"))
        return replace(after, last_answered=place, answered_at=at)
    if status == "refused":
        return replace(after, refusals=_plus(after.refusals, reason))
    if status == "rejected":
        return replace(after, num_rejected=after.num_rejected + 1)
    return after


def _plus(counts: Mapping[str, int], reason: str) -> dict[str, int]:
    key = reason or "unknown"
    return {**counts, key: counts.get(key, 0) + 1}


def _status(row: Table) -> Doing:
    status = words(row.get("status"))
    return cast(Doing, status) if status in get_args(Doing) else "failed"


def moment(text: str) -> datetime | None:
    """Read a time of one of the files; None if it is none, or names no zone."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read if read.tzinfo else None
