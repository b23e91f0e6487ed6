"""Reads a TOML file into one section, and turns every mistake into an error with a way out."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from medfed.common.errors import MedfedError, reason
from medfed.common.study.base import Section
from medfed.common.study_file import describe_errors

S = TypeVar("S", bound=Section)

_MAX_NAMED = 5


def read_toml(
    path: Path,
    section: type[S],
    error: type[MedfedError],
    missing: str,
    *,
    folder: Path | None = None,
) -> S:
    """Read and validate the file at `path`.

    Args:
        path: The file.
        section: What it holds.
        error: What is raised: missing, not TOML, an unknown key or an impossible value.
        missing: What is said if it is not there.
        folder: What the section's field `folder` is set to, which no file may set; None if it has
            none.

    Raises:
        MedfedError: As `error`.
    """
    return parse_toml(read_text(path, error, missing), path, section, error, folder=folder)


def read_text(path: Path, error: type[MedfedError], missing: str) -> str:
    """Read the text of a TOML file.

    Args:
        path: The file.
        error: What is raised: missing, or not text.
        missing: What is said if it is not there.

    Raises:
        MedfedError: As `error`.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise error(missing) from None
    except IsADirectoryError:
        names = ", ".join(str(one) for one in sorted(path.glob("*.toml"))[:_MAX_NAMED])
        raise error(
            f"Expected a TOML file, got the folder {path}. "
            + (f"Give a file in it: {names}." if names else "Give the file; it is not in there.")
        ) from None
    except (OSError, UnicodeDecodeError) as why:
        raise error(f"{path} cannot be read: {reason(why)}") from None


def parse_toml(
    text: str, path: Path, section: type[S], error: type[MedfedError], *, folder: Path | None = None
) -> S:
    """Validate the text of the file at `path`; the rest as `read_toml`.

    Raises:
        MedfedError: As `error`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise error(f"{path} cannot be read: {why}. Mend that line.") from None
    if folder is not None:
        if "folder" in table:
            raise error(f"{path}: folder: unknown key. It is where the file lies.")
        table["folder"] = folder
    try:
        return section.model_validate(table)
    except ValidationError as why:
        raise error(describe_errors(why, section, str(path))) from None
