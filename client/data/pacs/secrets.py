"""Passwords, tokens and lists of patient ids: read, never written, never in a message."""

import os
import stat
from pathlib import Path

from medfed.client.data.pacs.settings import WebSection
from medfed.common.errors import DataError, reason

_MAX_SECRET_BYTES = 64 << 10
_MAX_PATIENTS_BYTES = 64 << 20
_MAX_ID_LENGTH = 64


def password_of(web: WebSection) -> str:
    """Return the password of `web.user`."""
    return _secret(web.password_file, web.password_env, "password")


def token_of(web: WebSection) -> str:
    """Return the bearer token; empty if none is configured."""
    if not (web.token_file or web.token_env):
        return ""
    return _secret(web.token_file, web.token_env, "token")


def read_patients(path: Path) -> tuple[str, ...]:
    """Return the patient ids of a text file, one a line, each once. Keep them in memory only.

    Raises:
        DataError: It cannot be read, holds none, or a line that is no patient id.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_PATIENTS_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"Expected {path} in UTF-8, got another encoding. Save it again.") from None
    except OSError as error:
        raise DataError(f"The list of patients {path} cannot be read: {reason(error)}") from None
    if len(text) > _MAX_PATIENTS_BYTES:
        raise DataError(f"Expected at most 64 MB in {path}, got more. Split it.")
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        # The line itself stays out of the message: it is an identity.
        if len(line) > _MAX_ID_LENGTH or "\\" in line or not line.isprintable():
            raise DataError(
                f"{path}, line {number}: expected one patient id of at most {_MAX_ID_LENGTH} "
                "letters without backslash, got something else. One id a line, nothing more."
            )
    patients = tuple(dict.fromkeys(line for line in lines if line))
    if not patients:
        raise DataError(f"Expected a patient id a line in {path}, found none.")
    return patients


def check_private(path: Path, what: str) -> None:
    """Refuse a secret that others can read.

    Raises:
        DataError: It is missing, or others than its owner may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"The {what} {path} cannot be read: {reason(error)}") from None
    if mode & 0o077:
        raise DataError(
            f"Expected {path} to be readable by its owner alone, got mode {mode:o}. "
            f"`chmod 600 {path}`, and change the {what} if others may have seen it."
        )


def _secret(file: str, variable: str, what: str) -> str:
    if variable:
        value = os.environ.get(variable, "")
        if not value:
            raise DataError(f"Expected the {what} in the environment as {variable}, found none.")
        return value
    path = Path(file)
    check_private(path, what)
    try:
        with path.open("rb") as opened:
            value = opened.read(_MAX_SECRET_BYTES).decode("utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The {what} file {path} cannot be read: {type(error).__name__}.") from None
    if not value or not value.isprintable():
        raise DataError(f"Expected one line with the {what} in {path}, got something else.")
    return value
