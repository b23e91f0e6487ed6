"""Tells of nodes that were asked which will not answer any more."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Message

from medfed.server.presence import Presence


@dataclass(frozen=True)
class Watch:
    """How to tell that a node will not answer.

    Attributes:
        presence: Who is connected.
        lost_after_s: A node that has been unable to answer for so long is lost.
        turned_away_s: By node, how long ago an answer of it was turned away; 0 if none was.
    """

    presence: Presence
    lost_after_s: float
    turned_away_s: Callable[[int], float]


@dataclass
class Asked:
    """A node that was asked and has not answered.

    Attributes:
        message: What it was asked.
        start: When it was connected, as Flower says.
        times: How often it was asked.
        identifiers: Of the messages that it may answer.
        owed: Whether it is to be asked again as soon as it is connected.
        forgot_at: When it was seen to be connected anew, if it cannot be asked again.
    """

    message: Message
    start: str
    times: int = 1
    identifiers: set[str] = field(default_factory=set)
    owed: bool = False
    forgot_at: float | None = None


@dataclass(frozen=True)
class Patience:
    """How long a node is waited for that may not answer.

    Attributes:
        forgets: Whether an answer takes seconds only, so that a node which gave none after it was
            connected anew has forgotten the message: that one is not waited for, enough or not.
        away_at_most_s: A node that has been away for so long is not waited for, enough or not.
    """

    forgets: bool = False
    away_at_most_s: float = math.inf

    def has_ended(self, node: int, asked: Asked, watch: Watch, *, is_enough: bool) -> bool:
        """Whether a node is not waited for any longer; `is_enough`: whether others' answers are."""
        away_s, silent_s = watch.presence.offline_s(node), 0.0
        if asked.forgot_at is not None and (self.forgets or is_enough):
            silent_s = time.monotonic() - asked.forgot_at
        if is_enough:
            silent_s = max(silent_s, away_s, watch.turned_away_s(node))
        return silent_s >= watch.lost_after_s or away_s >= self.away_at_most_s
