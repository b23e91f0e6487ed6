"""Downloads one file: resumed where it stopped, checked against its checksum, there whole or not.

Several threads or processes may ask for the same file: one fetches it, the others wait for it.
"""

import fcntl
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx

from medfed.common.errors import DataError

if TYPE_CHECKING:
    from hashlib import _Hash

logger = logging.getLogger(__name__)

Algorithm = Literal["md5", "sha256"]
# MD5 is what the data sets' publishers state: it finds damage, it is no protection from forgery.
_ALGORITHMS: dict[Algorithm, tuple[str, Callable[[], "_Hash"]]] = {
    "md5": ("MD5", functools.partial(hashlib.md5, usedforsecurity=False)),
    "sha256": ("SHA-256", hashlib.sha256),
}


@dataclass(frozen=True)
class Checksum:
    """What a whole file must come to; `value` is hexadecimal. Prints as "MD5 900150..."."""

    algorithm: Algorithm
    value: str

    def __str__(self) -> str:
        return f"{_ALGORITHMS[self.algorithm][0]} {self.value}"


def cache_folder() -> Path:
    """Return where downloads are kept: `MEDFED_CACHE`, or `~/.cache/medfed`."""
    given = os.environ.get("MEDFED_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "medfed"


def file_checksum(path: Path, algorithm: Algorithm) -> str:
    """Return the hexadecimal checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _ALGORITHMS[algorithm][1]).hexdigest()


def download(url: str, path: Path, checksum: Checksum, *, elsewhere: str) -> None:
    """Fetch `url` to `path`, unless `path` is there already with the right checksum.

    The bytes are collected in `path` + ".part". A broken connection is taken up again with an
    HTTP Range request: at once as long as each attempt brings bytes, otherwise by the next call.
    The file gets its name only after its checksum was verified.

    Args:
        url: http or https; redirects are followed.
        path: Where the file goes; parents are created.
        checksum: Of the whole file.
        elsewhere: For messages: how to use a file that lies somewhere else, "name it with ...".

    Raises:
        DataError: No connection, an HTTP error, or a wrong checksum (the bytes are then removed).
            The message says how to place the file by hand.
    """
    if _is_there(path, checksum, elsewhere):
        return
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    by_hand = (
        f"fetch {url} ({checksum}) on another machine and place it at {path}, "
        f"or anywhere else and {elsewhere}."
    )
    with _only_writer(part):
        # Whoever was here before may have fetched it.
        if not _is_there(path, checksum, elsewhere):
            _fetch(url, part, path, checksum, by_hand)


def _is_there(path: Path, checksum: Checksum, elsewhere: str) -> bool:
    if not path.exists():
        return False
    actual = file_checksum(path, checksum.algorithm)
    if actual != checksum.value:
        raise DataError(
            f"Expected {checksum} of {path}, got {actual}. Delete that file to download it "
            f"again, or {elsewhere} to use it as it is."
        )
    return True


@contextmanager
def _only_writer(part: Path) -> Iterator[None]:
    """Wait until nobody else collects into `part`; leave no empty one behind."""
    while True:
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The one waited for has moved or removed the file that was locked: it is another's.
            if not _is_same(file.fileno(), part):
                continue
            try:
                yield
            finally:
                if _is_same(file.fileno(), part) and _size(part) == 0:
                    part.unlink()
            return


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _fetch(url: str, part: Path, path: Path, checksum: Checksum, by_hand: str) -> None:
    logger.info("Downloading %s to %s", url, path)
    _collect(url, part, by_hand)
    actual = file_checksum(part, checksum.algorithm)
    if actual != checksum.value:
        part.unlink()
        raise DataError(
            f"{url}: expected {checksum}, got {actual}; what was downloaded is removed. "
            f"Run again. If it happens again, {by_hand}"
        )
    part.replace(path)


def _collect(url: str, part: Path, by_hand: str) -> None:
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
                    f"{url}: the server answered {status}. {by_hand[0].upper()}{by_hand[1:]}"
                ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if _size(part) > before:
                    logger.warning("%s: connection broke (%s); resuming", url, error)
                    continue
                reason = str(error) or type(error).__name__
                raise DataError(
                    f"{url}: cannot be downloaded ({reason}). Is this machine online? What has "
                    f"arrived so far ({_size(part)} bytes) is kept and taken up by the next run. "
                    f"Otherwise {by_hand}"
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
