"""What a part of an audit hands back: findings, tables and figures, ready for JSON and the page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Number = float | int | str | None


class Status(StrEnum):
    """What a check came to. Only `fail` makes an audit fail; a `note` is for the reader."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One check and what it came to.

    Args:
        part: `ledger`, `mechanism`, `membership` or `reconstruction`.
        check: The check's name, a few words, the same in every audit (`noise standard deviation`).
        status: `pass`, `fail` or `note`.
        detail: One or two plain sentences that an auditor understands without the source.
        numbers: The figures behind it by name (name ends with its unit where it has one).
    """

    part: str
    check: str
    status: Status
    detail: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the page: a title, one name a column, rows of cells of the same length."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Number, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A picture of the page: a caption in words and the bytes of a PNG."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class PartResult:
    """Everything that one part of the audit found.

    Args:
        name: `ledger`, `mechanism`, `membership` or `reconstruction`.
        findings: In the order in which they were checked.
        tables: Numbers for the page, not in the JSON's findings.
        figures: Pictures for the page.
        skipped: Why the part did not run, or "" if it ran.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed (true of a part that was skipped: it claims nothing)."""
        return not any_failed(self.findings)


def any_failed(findings: Iterable[Finding]) -> bool:
    """Whether one of the findings is a failure."""
    return any(finding.status is Status.FAIL for finding in findings)
