"""What the commands of a federation share: where it lies, and how to name a command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

HOME = Path("federation")
Home = Annotated[
    Path, typer.Option("--home", envvar="MEDFED_FEDERATION", help="The federation's folder.")
]


def command_of(home: Path, rest: str) -> str:
    """Return a command of this group as it must be typed here."""
    usual = "MEDFED_FEDERATION" in os.environ or home.resolve() == HOME.resolve()
    return f"medfed federation {rest}" + ("" if usual else f" --home {home}")


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error of the operating system into words."""
    from medfed.common.errors import FederationError

    try:
        yield
    except OSError as error:
        raise FederationError(
            f"{error.filename or 'A file'}: {error.strerror}. Run this as the user who owns the "
            "federation's folder, with room on the disk."
        ) from None
