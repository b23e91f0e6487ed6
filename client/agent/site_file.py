"""Adds what enrolment learned to `site.toml`, leaving every comment where it is."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from medfed.common.errors import FederationError
from medfed.common.files import replace_keeping_mode

_SECTION = re.compile(r"^\s*\[\s*connection\s*\]\s*(#.*)?$")
_HEADER = re.compile(r"^\s*\[")
_EMPTY_ADDRESS = re.compile(r"""^(\s*address\s*=\s*)(?:""|'')(\s*(?:#.*)?)$""")


def add_address(site_file: Path, address: str) -> bool:
    """Write the coordinator's address into `[connection]`, unless one is there.

    Returns:
        Whether it was written.

    Raises:
        FederationError: The file is written in a way that this cannot extend. It is unchanged.
    """
    path = site_file.resolve()
    text = path.read_bytes().decode()
    before = tomllib.loads(text)
    section = before.get("connection", {})
    if isinstance(section, dict) and section.get("address"):
        return False
    changed = _with_address(text, address)
    try:
        if not _adds_only(address, before, changed):
            raise ValueError("its [connection] is written in an unusual way")
        replace_keeping_mode(path, changed.encode())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise FederationError(
            f"Could not add the coordinator's address to {site_file} ({why}). Write it into the "
            f"section [connection], address = {json.dumps(address)}, and run this command again."
        ) from None
    return True


def _with_address(text: str, address: str) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    line = f"address = {json.dumps(address)}"
    lines = text.split(end)
    begin = next((i for i, found in enumerate(lines) if _SECTION.match(found)), None)
    if begin is None:
        gap = "" if text.endswith(end) or not text else end
        return f"{text}{gap}{end}[connection]{end}{line}{end}"
    for index in range(begin + 1, len(lines)):
        if _HEADER.match(lines[index]):
            break
        if empty := _EMPTY_ADDRESS.match(lines[index]):
            lines[index] = f"{empty[1]}{json.dumps(address)}{empty[2]}"
            return end.join(lines)
    return end.join([*lines[: begin + 1], line, *lines[begin + 1 :]])


def _adds_only(address: str, before: dict[str, Any], text: str) -> bool:
    """Whether `text` says what the file said, and the address."""
    try:
        after = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    section = before.get("connection", {})
    return after == {**before, "connection": {**section, "address": address}}
