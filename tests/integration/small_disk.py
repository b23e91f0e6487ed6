"""A folder on a small disk of its own, which a test can fill. Needs the right to mount one."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MB = 1 << 20


def why_not() -> str:
    """Return why nothing can be mounted here; empty if it can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "a small disk needs root and the program mount"
    with tempfile.TemporaryDirectory() as folder:
        done = _mount(Path(folder))
        if done.returncode:
            return f"nothing can be mounted: {done.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return ""


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int = 16) -> Iterator["Disk"]:
    """Put a folder's content on a disk of its own for the time of the block, and back after it."""
    content = shutil.copytree(folder, folder.with_name(f"{folder.name}-before"))
    done = _mount(folder, size_mb)
    assert not done.returncode, done.stderr
    try:
        shutil.copytree(content, folder, dirs_exist_ok=True)
        yield Disk(folder / "ballast")
        shutil.rmtree(content)
        shutil.copytree(folder, content)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    shutil.rmtree(folder)
    content.rename(folder)


class Disk:
    """A disk with a file on it that takes what is left."""

    def __init__(self, ballast: Path) -> None:
        self._ballast = ballast

    def fill(self) -> None:
        """Leave no byte free."""
        handle = os.open(self._ballast, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            for size in (_MB, 4096, 1):
                with contextlib.suppress(_Full):
                    while True:
                        _write(handle, b"\0" * size)
        finally:
            os.close(handle)

    def free(self) -> None:
        """Remove that file."""
        self._ballast.unlink()


class _Full(Exception):  # noqa: N818 - ends a loop
    pass


def _write(handle: int, content: bytes) -> None:
    try:
        os.write(handle, content)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _Full from None


def _mount(folder: Path, size_mb: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
