"""What a look at data finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]

_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        level: An error must be mended; a warning should be looked at.
        check: What was looked at, in a word or two.
        text: What was found; with the way out, unless it is ok.
    """

    level: Level
    check: str
    text: str


def some(names: Sequence[str]) -> str:
    """Return the first few of `names`, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
