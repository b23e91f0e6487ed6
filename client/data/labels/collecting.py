"""What the sources of labels gave, while they are read."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from medfed.client.data.archive.inventory import Unusable
from medfed.client.data.labels.said import About, Place, Said

# Examples are kept of what does not match, and the rest counted: a wrong table has a million.
_MAX_ROWS = 1000


@dataclass(frozen=True)
class UnmatchedRow:
    """A row, or a file where `row` is 0, that says nothing of any image, and why."""

    source: str
    row: int
    reason: str


@dataclass
class SourceReport:
    """What one source gave, for the hospital's own screen.

    Attributes:
        name: Of the source: file, folder or pattern.
        kind: "table", "folders", "masks" or "reports".
        rows: Rows or files that were looked at.
        matched: Those of them that mean an image.
        empty: Those that say nothing.
        unmatched: Those that mean none or cannot be used.
        notes: How it was read.
        suggestions: What to look at, each with the way out.
        guessed_classes: Classes beyond ASCII that nobody named before, of a table whose encoding
            is a guess.
    """

    name: str
    kind: str
    rows: int = 0
    matched: int = 0
    empty: int = 0
    unmatched: int = 0
    notes: list[str] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    guessed_classes: list[str] = field(default_factory=list)

    def as_table(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dict(vars(self))


@dataclass
class Collected:
    """All that was said, by image."""

    said: dict[Place, list[Said]] = field(default_factory=lambda: defaultdict(list))
    sources: list[SourceReport] = field(default_factory=list)
    unmatched: list[UnmatchedRow] = field(default_factory=list)
    problems: list[Unusable] = field(default_factory=list)

    def source(self, name: str, kind: str) -> SourceReport:
        """Begin a source."""
        self.sources.append(SourceReport(name, kind))
        return self.sources[-1]

    def add(self, source: str, line: int, places: Iterable[Place], about: About) -> None:
        """Note a statement."""
        one = Said(source, line, about)
        for place in places:
            self.said[place].append(one)

    def refuse(self, report: SourceReport, line: int, reason: str) -> None:
        """Note a row or file that means no image."""
        report.unmatched += 1
        if report.unmatched <= _MAX_ROWS:
            self.unmatched.append(UnmatchedRow(report.name, line, reason))
