"""`FileProblem`: why one file gives no image, with the words that group it with others."""

from pathlib import Path

from medfed.client.data.archive.inventory import Category, Unusable, printable
from medfed.common.errors import UnreadableImageError


class FileProblem(UnreadableImageError):  # noqa: N818 - often nothing went wrong
    """What is wrong with a file. The message does not name it: who opened it does.

    Args:
        message: What was expected, what came, and the way out.
        what: A few words that are the same for all files with this trouble.
        category: As `Unusable.category`.
    """

    def __init__(self, message: str, what: str = "damaged", category: Category = "unreadable"):
        super().__init__(message)
        self.what = what
        self.category = category

    def of(self, path: Path | str) -> "FileProblem":
        """Return the same, naming the file."""
        return FileProblem(f"{printable(path)}: {self}", self.what, self.category)

    def as_unusable(self, path: Path | str) -> Unusable:
        """Return the inventory's entry."""
        return Unusable(printable(path), str(self.of(path)), self.category, self.what)


def limit_exceeded(message: str) -> FileProblem:
    """Return the problem of a file that asks for more than the limits allow."""
    return FileProblem(message, "beyond the limits", "refused")
