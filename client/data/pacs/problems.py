"""`PacsError`: what went wrong between this machine and the PACS."""

from medfed.common.errors import DataError


class PacsError(DataError):
    """The PACS cannot be reached, refuses, or answers what is no answer.

    Args:
        message: What was expected, what came, and the way out. Names no patient.
        transient: Whether the same may work a little later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def too_many(where: str) -> PacsError:
    """Return the problem of a PACS that never stops answering."""
    return PacsError(f"{where} names more than anybody asked for. Narrow the query by date.")
