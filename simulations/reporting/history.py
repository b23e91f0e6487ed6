"""What happened in an arm, from the events that the server wrote while it ran.

Events are progress, not a record: they are not synced to disk. A line that cannot be read is left
out, and an event that this release does not know is not shown.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.simulations.reporting.tables import Table, counted

# The story of a long run would bury the page: its beginning and its end are told.
_MAX_ROWS = 60


@dataclass(frozen=True)
class Happening:
    """One event.

    Attributes:
        kind: The event's name, as the server emits it.
        time: UTC, ISO 8601.
        facts: What else the line holds.
    """

    kind: str
    time: str
    facts: Mapping[str, Any]


def read_history(path: Path) -> tuple[Happening, ...]:
    """Read events.jsonl; nothing if it is not there."""
    if not path.exists():
        return ()
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            table = json.loads(line)
            found.append(Happening(str(table.pop("event")), str(table.pop("time")), table))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return tuple(found)


def history_table(happened: Sequence[Happening]) -> Table:
    """Return what happened and when, completed rounds without anything special together."""
    rows = [*_rows(happened)]
    more = len(rows) - _MAX_ROWS
    if more > 0:
        half = _MAX_ROWS // 2
        rows[half:-half] = [("…", f"{counted(more, 'line')} left out; see events.jsonl")]
    return Table(("Time (UTC)", "What happened"), tuple(rows), text=frozenset({0, 1}))


def _rows(happened: Sequence[Happening]) -> Iterator[tuple[str, str]]:
    rounds: list[Happening] = []
    joined: list[Happening] = []
    for event in happened:
        if event.kind == "completed":
            rounds.append(event)
        elif event.kind == "joined":
            joined.append(event)
        elif (text := _in_words(event)) is not None:
            yield from _together(joined, rounds)
            yield _clock(event.time), text
    yield from _together(joined, rounds)


def _together(joined: list[Happening], rounds: list[Happening]) -> Iterator[tuple[str, str]]:
    """Tell what was gathered so far, and forget it."""
    if joined:
        names = [str(event.facts.get("site")) for event in joined]
        yield _clock(joined[-1].time), f"{counted(len(names), 'site')} joined: {', '.join(names)}."
    if rounds:
        first, last = rounds[0].facts.get("round"), rounds[-1].facts.get("round")
        which = f"Round {first}" if first == last else f"Rounds {first} to {last}"
        yield _clock(rounds[-1].time), f"{which} completed."
    joined.clear()
    rounds.clear()


def _in_words(event: Happening) -> str | None:
    """One line; None for what the page shows elsewhere, or does not know."""
    told = _TOLD.get(event.kind)
    try:
        return None if told is None else told(event.facts)
    except KeyError:  # of another release
        return event.kind


def _started(facts: Mapping[str, Any]) -> str:
    if facts["after"]:
        return f"Resumed after round {facts['after']} of {facts['rounds']}."
    return f"Started: {counted(int(facts['rounds']), 'round')} to go."


def _finished(facts: Mapping[str, Any]) -> str:
    why = f": {facts['reason']}" if facts["reason"] else "."
    return f"Finished after {counted(int(facts['rounds']), 'round')}{why}"


def _in_round(facts: Mapping[str, Any]) -> str:
    return f" in round {facts['round']}" if facts.get("round") else ""


_TOLD: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "started": _started,
    "refused": lambda facts: (
        f"{facts['site']} refused{_in_round(facts) or ' to join'} ({facts['reason']})."
    ),
    "rejected": lambda facts: (
        f"What {facts['site']} sent{_in_round(facts)} was rejected: {facts['reason']}"
    ),
    "words": lambda facts: f"{facts['words']} words agreed from {counted(facts['sites'], 'site')}.",
    "statistics": lambda facts: (
        f"{facts['sites']} of {counted(facts['asked'], 'site')} described their training data."
    ),
    "waiting": lambda facts: f"Waiting: {facts['reason']}",
    "away": lambda facts: f"{facts['site']} was away{_in_round(facts)}.",
    "lost": lambda facts: f"{facts['site']} was lost{_in_round(facts)}.",
    "rejoined": lambda facts: f"{facts['site']} came back{_in_round(facts)}.",
    "failed": lambda facts: f"Failed: {facts['reason']}",
    "finished": _finished,
}


def _clock(time: str) -> str:
    return time[:19].replace("T", " ")
