"""Notices within a fraction of a millisecond that a file is being written: Linux's inotify."""

import ctypes
import os
import select
import struct
import time
from pathlib import Path
from typing import Literal, Self

Change = Literal["created", "written", "renamed"]

_EVENTS: dict[Change, int] = {"created": 0x100, "written": 0x2, "renamed": 0x80}  # sys/inotify.h
_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Watches the files of one folder from now on.

    Args:
        folder: There already.
    """

    def __init__(self, folder: Path) -> None:
        self._events = b""
        self._handle = _libc.inotify_init1(os.O_CLOEXEC)
        mask = sum(_EVENTS.values())
        if self._handle < 0 or _libc.inotify_add_watch(self._handle, bytes(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), f"inotify on {folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def wait_for(self, change: Change, part: str, timeout_s: float = 180) -> str:
        """Return the name of the next file that changes so and has `part` in its name."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._events:
                _, mask, _, length = _HEAD.unpack_from(self._events)
                name = self._events[_HEAD.size : _HEAD.size + length].rstrip(b"\0").decode()
                self._events = self._events[_HEAD.size + length :]
                if mask & _EVENTS[change] and part in name:
                    return name
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._handle], [], [], left)[0]:
                raise TimeoutError(f"{part} was not {change} within {timeout_s:.0f} s")
            self._events = os.read(self._handle, 1 << 16)
