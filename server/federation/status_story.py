"""Where a run stands in its current round, told by the events that its server writes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from medfed.common.errors import RefusalReason
from medfed.server.federation.status_files import Table, number, words
from medfed.server.federation.status_types import Doing

_IN_ROUND: dict[str, Doing] = {
    "trained": "answered",
    "refused": "refused",
    "failed": "failed",
    "late": "late",
    "rejected": "rejected",
    "away": "away",
    "lost": "lost",
    "rejoined": "asked",
}


@dataclass
class Story:
    """What the events say, up to the last.

    Attributes:
        time: Of the last event; ISO 8601, UTC.
        last: Its kind.
        rounds: That the latest start had in mind.
        round_number: The latest round that was begun, or that was complete at the latest start.
        round_started: When it was begun; "" if it was not since the latest start.
        asked: How many sites were asked in it.
        waits_for: Why the server waits; "" if it does not.
        joined: Sites that joined since the latest start.
        gone: Those of them that are not connected.
        withdrawn: Those that will refuse again.
        turned_away: Sites that refused to join since the latest start, with the reason.
        refusals: (site, reason) of every refusal to join, of earlier starts too.
        doing: What each site does in the round, and why; of those that are known to be asked.
    """

    time: str = ""
    last: str = ""
    rounds: int = 0
    round_number: int = 0
    round_started: str = ""
    asked: int = 0
    waits_for: str = ""
    joined: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)
    turned_away: dict[str, str] = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    doing: dict[str, tuple[Doing, str]] = field(default_factory=dict)
    _num_unnamed: int = 0

    @property
    def num_answered(self) -> int:
        """Sites that have answered in the round."""
        named = sum(doing in ("answered", "refused") for doing, _ in self.doing.values())
        return max(named, self._num_unnamed)

    def add(self, event: Table) -> None:
        """Take in the next event; one that is not known changes nothing but the time."""
        kind, site = words(event.get("event")), words(event.get("site"))
        reason = words(event.get("reason"))
        self.time = words(event.get("time")) or self.time
        self.last = kind
        self.waits_for = reason if kind == "waiting" else ""
        if kind == "started":
            self._start(event)
        elif kind == "joined":
            self.joined.add(site)
        elif kind == "round":
            self._begin_round(event)
        elif kind == "refused" and "round" not in event:
            self.turned_away[site] = reason
            self.refusals.append((site, reason))
        elif kind in _IN_ROUND and site:
            self._note(kind, site, reason)
        elif kind == "trained":
            self._num_unnamed += 1

    def _note(self, kind: str, site: str, reason: str) -> None:
        if kind in ("away", "lost"):
            self.gone.add(site)
        elif kind == "rejoined":
            self.gone.discard(site)
            if self.doing.get(site, ("", ""))[0] == "away":
                del self.doing[site]  # whether it is asked now is not known
                return
        elif kind == "refused" and _is_final(reason):
            self.withdrawn.add(site)
        self.doing[site] = (_IN_ROUND[kind], reason)

    def _start(self, event: Table) -> None:
        self.rounds = number(event.get("rounds"))
        self.round_number = number(event.get("after"))
        self.round_started = ""
        self.joined, self.gone, self.withdrawn = set(), set(), set()
        self.turned_away, self.doing = {}, {}

    def _begin_round(self, event: Table) -> None:
        self.round_number = number(event.get("round"))
        self.round_started = words(event.get("time"))
        self.asked = number(event.get("sites"))
        self._num_unnamed = 0
        names = event.get("names")
        if not isinstance(names, list):
            # Who was drawn is known where all were that could be.
            there = self.joined - self.gone - self.withdrawn
            names = sorted(there) if self.asked == len(there) else []
        away: dict[str, tuple[Doing, str]] = {name: ("away", "") for name in self.gone}
        self.doing = away | {words(name): ("asked", "") for name in names}


def _is_final(reason: str) -> bool:
    try:
        return RefusalReason(reason).is_final
    except ValueError:  # of another release
        return False


def follow(events: Sequence[Table]) -> Story:
    """Return what `events` come to, oldest first."""
    story = Story()
    for event in events:
        story.add(event)
    return story
