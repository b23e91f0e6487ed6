"""What happened at a site, in plain words: from its audit log, release list and ledger.

A chapter is a request with what came of it, or one event. What left is taken from the release list,
which is written before anything does; what was charged from the ledger.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from medfed.client.agent.wording import Tone, event_text, left_text, outcome_text, request_text
from medfed.client.audit_facts import Fact
from medfed.client.audit_log import AuditEntry
from medfed.client.releases import Release
from medfed.client.site import PolicySection
from medfed.common.ledger import Entry

_OUTCOMES = frozenset(
    {"answered", "refused", "bundle_refused", "worker_killed", "worker_died", "failed"}
)
_ABOUT = ("run", "study", "kind", "round_number")
_END = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One thing that happened.

    Attributes:
        time: When it began, UTC, ISO 8601.
        request: What was asked; empty if it is no request.
        outcome: What came of it, or what happened; empty if nothing yet.
        tone: How a screen may colour it.
        entries: What the audit log has of it.
    """

    time: str
    request: str = ""
    outcome: str = ""
    tone: Tone = "plain"
    entries: tuple[AuditEntry, ...] = ()

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(part for part in (self.request, self.outcome) if part)


@dataclass
class Exchange:
    """A request with what followed, or one event alone.

    Attributes:
        entries: Of the audit log.
        releases: What left, of the release list.
        spends: What was charged, of the ledger.
        end: When it was over, or the next request came.
    """

    entries: list[AuditEntry]
    releases: list[Release] = field(default_factory=list)
    spends: list[Entry] = field(default_factory=list)
    end: datetime = _END


def tell(
    entries: Sequence[AuditEntry],
    releases: Sequence[Release],
    ledger: Sequence[Entry],
    policy: PolicySection,
) -> list[Chapter]:
    """Return the chapters, oldest first.

    Args:
        entries: Of the audit log.
        releases: Of the release list. One that belongs to no request of `entries` has a chapter
            of its own: it left all the same.
        ledger: Its entries.
        policy: States the budget.
    """
    exchanges = list(_group(entries))
    requests = [one for one in exchanges if one.entries[0].event == "asked"]
    for one, following in itertools.pairwise(requests):
        one.end = _moment(following.entries[0].time)
    for one in requests:
        if len(one.entries) > 1:
            one.end = _moment(one.entries[-1].time)
    left_over = _assign(requests, releases, ledger)
    chapters = [_chapter(one, policy) for one in exchanges]
    since = entries[0].time if entries else ""
    chapters += [_unasked(release, since) for release in left_over]
    return sorted(chapters, key=lambda chapter: _moment(chapter.time))


def _group(entries: Sequence[AuditEntry]) -> Iterator[Exchange]:
    """Yield each request with its outcome, and each other event alone. One is in hand at a time."""
    waiting: Exchange | None = None
    for entry in entries:
        if entry.event == "asked":
            waiting = Exchange([entry])
            yield waiting  # and what is added to it later
        elif waiting is not None and _belongs(entry, waiting):
            waiting.entries.append(entry)
            if entry.event != "bundle_refused":  # the refusal itself follows
                waiting = None
        else:
            yield Exchange([entry])


def _belongs(entry: AuditEntry, waiting: Exchange) -> bool:
    asked = waiting.entries[0].facts
    named = [name for name in _ABOUT if name in entry.facts]
    return entry.event in _OUTCOMES and all(entry.facts[n] == asked.get(n) for n in named)


def _assign(
    requests: Sequence[Exchange], releases: Sequence[Release], ledger: Sequence[Entry]
) -> list[Release]:
    """Give each request what left and what was charged in its time; return what left besides."""
    starts = [_moment(one.entries[0].time) for one in requests]

    def at(time: str, run: str) -> Exchange | None:
        moment = _moment(time)
        place = bisect.bisect_right(starts, moment) - 1
        if place < 0 or moment > requests[place].end:
            return None
        asked = requests[place].entries[0].facts.get("run", "")
        return requests[place] if run in ("", asked) else None

    left_over = []
    for release in releases:
        request = at(release.time, release.run)
        if request is None:
            left_over.append(release)
        else:
            request.releases.append(release)
    for entry in ledger:
        request = at(entry.time, entry.spend.run)
        if request is not None:
            request.spends.append(entry)
    return left_over


def _chapter(one: Exchange, policy: PolicySection) -> Chapter:
    first = one.entries[0]
    if first.event != "asked":
        text, tone = event_text(first)
        return Chapter(time=first.time, outcome=text, tone=tone, entries=tuple(one.entries))
    request = request_text(first.facts)
    if len(one.entries) == 1 and one.end == _END:
        return Chapter(time=first.time, request=request, entries=tuple(one.entries))
    spends = [entry.spend for entry in one.spends]
    outcome, tone = outcome_text(one.entries[1:], one.releases, spends, policy)
    return Chapter(
        time=first.time,
        request=request,
        outcome=outcome,
        tone=tone,
        entries=tuple(one.entries),
    )


def _unasked(release: Release, since: str) -> Chapter:
    """What left though no request of the audit log explains it."""
    facts: dict[str, Fact] = {
        "run": release.run,
        "study": release.study,
        "round_number": release.round_number,
    }
    missing = bool(since) and _moment(since) < _moment(release.time)
    return Chapter(
        time=release.time,
        outcome=left_text(release, facts) + " The audit log has no request for it." * missing,
        tone="bad" if missing else "plain",
    )


def _moment(time: str) -> datetime:
    return datetime.fromisoformat(time)
