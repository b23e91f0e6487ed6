"""Asking a PACS again when it was busy or away, with longer and longer waits."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.settings import PacsSection

_LONGEST_S = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often and when to ask again.

    Attributes:
        attempts: In all.
        pause_s: Before the second; twice as long before each further one.
    """

    attempts: int
    pause_s: float

    @staticmethod
    def of(pacs: PacsSection) -> "Patience":
        """Return what the settings say."""
        return Patience(pacs.attempts, pacs.pause_s)

    def wait(self, failures: int) -> None:
        """Wait after so many failures in a row."""
        time.sleep(min(_LONGEST_S, self.pause_s * 2 ** min(failures - 1, 16)))

    def ask(self, what: Callable[[], T]) -> T:
        """Return what `what` returns, asked again while it fails for a passing reason.

        Raises:
            PacsError: The last reason.
        """
        for failures in range(1, self.attempts):
            try:
                return what()
            except PacsError as error:
                if not error.transient:
                    raise
                self.wait(failures)
        return what()
