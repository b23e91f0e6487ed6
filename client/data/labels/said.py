"""What a source says of an image, and where two sources contradict each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from medfed.client.data.records import Split

# Number of a series in the inventory, and of a file or frame in it; -1 for all of the series.
Place = tuple[int, int]
WHOLE = -1


@dataclass(frozen=True, slots=True)
class About:
    """What one row, folder or file says.

    Attributes:
        present: Classes that are there; None if it says nothing of classes.
        absent: Classes that are not; None: all that are not present.
        leave_out: A class is uncertain, and such images are not used.
        split: Of the published split.
        columns: Names and values to keep.
        patient: Raw identity of whose it is. In memory only.
        report: Text.
    """

    present: frozenset[str] | None = None
    absent: frozenset[str] | None = field(default=frozenset())
    leave_out: bool = False
    split: Split | None = None
    columns: tuple[tuple[str, str], ...] = ()
    patient: str = ""
    report: str = ""


class Said(NamedTuple):
    """A statement and where it stands."""

    source: str
    line: int
    about: About

    @property
    def where(self) -> str:
        """The source, with the line if it has lines."""
        return f"{self.source}, line {self.line}" if self.line else self.source


class Contradiction(NamedTuple):
    """Two statements that cannot both be true."""

    subject: str
    said: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """All statements of one image together, as if none contradicted another."""

    classes: tuple[str, ...] | None = None
    leave_out: bool = False
    split: Split | None = None
    columns: tuple[tuple[str, str], ...] = ()
    patient: str = ""
    report: str = ""
    contradictions: tuple[Contradiction, ...] = ()


def join_said(said: Sequence[Said]) -> Joined:
    """Put statements together: all classes and texts, the first split, patient and column value.

    Statements that agree are one, wherever they stand.
    """
    abouts = [one.about for one in said]
    speaking = [one for one in said if one.about.present is not None]
    classes = sorted(frozenset().union(*(one.about.present or () for one in speaking)))
    columns: dict[str, str] = {}
    for about in abouts:
        for name, value in about.columns:
            columns.setdefault(name, value)
    reports = dict.fromkeys(about.report for about in abouts if about.report)
    return Joined(
        classes=tuple(classes) if speaking else None,
        leave_out=any(about.leave_out for about in abouts),
        split=next((about.split for about in abouts if about.split), None),
        columns=tuple(columns.items()),
        patient=next((about.patient for about in abouts if about.patient), ""),
        report="\n\n".join(reports),
        contradictions=(*_class_conflict(speaking), *_value_conflicts(said)),
    )


def _class_conflict(speaking: Sequence[Said]) -> tuple[Contradiction, ...]:
    for number, one in enumerate(speaking):
        for other in speaking[:number]:
            if _denies(one.about, other.about) or _denies(other.about, one.about):
                both = tuple((at.where, _class_words(at.about)) for at in (other, one))
                return (Contradiction("class", both),)
    return ()


def _denies(one: About, other: About) -> bool:
    """Whether `one` says of a class that `other` found that it is not there."""
    found = other.present or frozenset()
    if one.absent is None:
        return not found <= (one.present or frozenset())
    return bool(found & one.absent)


def _class_words(about: About) -> str:
    return ", ".join(sorted(about.present or ())) or "no class"


def _value_conflicts(said: Sequence[Said]) -> list[Contradiction]:
    found: list[Contradiction] = []
    values: dict[str, Said] = {}
    for one in said:
        for subject, value in _values(one.about):
            first = values.setdefault(subject, one)
            before = dict(_values(first.about))[subject]
            if before != value and not any(past.subject == subject for past in found):
                shown = [_shown(subject, text) for text in (before, value)]
                found.append(
                    Contradiction(subject, ((first.where, shown[0]), (one.where, shown[1])))
                )
    return found


def _values(about: About) -> list[tuple[str, str]]:
    values = [("split", about.split or ""), ("patient", about.patient), ("report", about.report)]
    values += [(f"column {name}", value) for name, value in about.columns]
    return [(subject, value) for subject, value in values if value]


def _shown(subject: str, value: str) -> str:
    """A value as a list of conflicts may show it: no identity, no text of a report."""
    if subject == "patient":
        return "one patient"
    return f"{len(value):,} characters" if subject == "report" else value
