"""What one round of secure aggregation is bound to: no key or share of it fits any other round."""

import json
import math
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.common.errors import MessageError

MAX_SITES = 256
"""Most sites of a round. Work grows with the square; hospitals are tens."""


def threshold_of(share: float, num_participants: int) -> int:
    """Return how many sites must stay to the end: the share rounded up, always more than half.

    More than half, so that a server cannot tell two groups of sites two stories of who dropped out
    and so collect both secrets of one site.

    Args:
        share: `secure_aggregation.threshold`.
        num_participants: Sites asked in the round.
    """
    # 0.9 * 10 may come out as 9.000000000000002.
    return max(math.ceil(share * num_participants - 1e-9), num_participants // 2 + 1)


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """One round of one run.

    Attributes:
        study: The study's digest.
        run: The run's identifier.
        round_number: 1-based.
        num_participants: Sites asked in the round.
        threshold: Sites that must stay to the end; fewer shares open nothing.
    """

    study: str
    run: str
    round_number: int
    num_participants: int
    threshold: int

    def __post_init__(self) -> None:
        if not 2 <= self.num_participants <= MAX_SITES:
            raise MessageError(
                f"Expected 2 to {MAX_SITES} participants for secure aggregation, got "
                f"{self.num_participants}. The sum over one site is that site's update."
            )
        if not self.num_participants < 2 * self.threshold <= 2 * self.num_participants:
            raise MessageError(
                f"Expected a threshold of more than half of {self.num_participants} participants, "
                f"got {self.threshold}. Set secure_aggregation.threshold above 0.5."
            )

    def label(self, purpose: str, *names: str) -> bytes:
        """Return bytes that no other purpose, names or round share."""
        # JSON, so that no two lists of names run into the same text.
        return json.dumps(
            [
                "medfed secure sum 1",
                self.study,
                self.run,
                self.round_number,
                self.num_participants,
                self.threshold,
                purpose,
                *names,
            ]
        ).encode()

    def derive(self, secret: bytes, purpose: str, *names: str) -> bytes:
        """Return a 256-bit key for one purpose from a secret of at least 256 bits (HKDF-SHA256)."""
        label = self.label(purpose, *names)
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(secret)
