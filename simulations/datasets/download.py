"""Downloads one file: resumed where it stopped, checked against its MD5, and there whole or not."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from medfed.common.errors import DataError

if TYPE_CHECKING:
    from hashlib import _Hash

logger = logging.getLogger(__name__)

# MD5 is what the data sets' publishers state: it finds damage, it is no protection from forgery.
_new_md5: Callable[[], "_Hash"] = functools.partial(hashlib.md5, usedforsecurity=False)


def download(url: str, path: Path, *, md5: str) -> None:
    """Fetch `url` to `path`, unless `path` is there already with the right checksum.

    The bytes are collected in `path` + ".part". A broken connection is taken up again with an
    HTTP Range request: at once as long as each attempt brings bytes, otherwise by the next call.
    The file gets its name only after its checksum was verified.

    Args:
        url: http or https; redirects are followed.
        path: Where the file goes; parents are created.
        md5: Hexadecimal MD5 of the whole file.

    Raises:
        DataError: No connection, an HTTP error, or a wrong checksum (the bytes are then removed).
            The message says how to place the file by hand.
    """
    if path.exists():
        if file_md5(path) == md5:
            return
        raise DataError(
            f"Expected MD5 {md5} of {path}, got {file_md5(path)}. Delete that file to download it "
            "again, or name it with --data to use it as it is."
        )
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    logger.info("Downloading %s to %s", url, path)
    _collect(url, part, md5, path)
    actual = file_md5(part)
    if actual != md5:
        part.unlink()
        raise DataError(
            f"{url}: expected MD5 {md5}, got {actual}; what was downloaded is removed. "
            f"Run again. If it happens again, {_by_hand(url, path, md5)}"
        )
    part.replace(path)


def file_md5(path: Path) -> str:
    """Return the hexadecimal MD5 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_md5).hexdigest()


def _collect(url: str, part: Path, md5: str, path: Path) -> None:
    """Append to `part` until the server has no more."""
    timeout = httpx.Timeout(30.0)
    with httpx.Client(follow_redirects=True, timeout=timeout) as client:
        while True:
            before = _size(part)
            try:
                _attempt(client, url, part)
                return
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                raise DataError(
                    f"{url}: the server answered {status}. {_by_hand(url, path, md5).capitalize()}"
                ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if _size(part) > before:
                    logger.warning("%s: connection broke (%s); resuming", url, error)
                    continue
                reason = str(error) or type(error).__name__
                raise DataError(
                    f"{url}: cannot be downloaded ({reason}). Is this machine online? What has "
                    f"arrived so far ({_size(part)} bytes) is kept and taken up by the next run. "
                    f"Otherwise {_by_hand(url, path, md5)}"
                ) from None


def _attempt(client: httpx.Client, url: str, part: Path) -> None:
    have = _size(part)
    # A compressed answer would make byte positions and the checksum meaningless.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", url, headers=headers) as response:
        if have and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            # Nothing lies beyond what is here: it is complete, or wrong, which the checksum tells.
            return
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {have}-")
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _by_hand(url: str, path: Path, md5: str) -> str:
    return (
        f"fetch {url} (MD5 {md5}) on another machine and place it at {path}, "
        "or anywhere else and name it with --data."
    )
