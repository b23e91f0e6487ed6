"""A network of one machine: a namespace with a cable to this one, which can be pulled out.

Needs root. What a pulled cable does to TCP nothing in one namespace can show: packets are lost and
nobody is told.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

OURS, THEIRS = "10.213.77.1", "10.213.77.2"


@dataclass(frozen=True)
class Cable:
    """A namespace called `name`; this end of its cable has that name, too."""

    name: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command is to begin with in order to run at the other end."""
        return ("ip", "netns", "exec", self.name)

    def pull(self) -> None:
        """Pull it out at this end."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """Plug it in."""
        _ip("link", "set", self.name, "up")


def why_not() -> str:
    """Return why this machine lets us make no namespace; empty if it does."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and the program ip"
    name = f"mf{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """A namespace for the time of the block; this machine is `OURS` to it."""
    made = Cable(f"mf{os.getpid()}")
    name, far = made.name, f"{made.name}p"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", far, "netns", name)
        _ip("address", "add", f"{OURS}/24", "dev", name)
        _ip("-n", name, "address", "add", f"{THEIRS}/24", "dev", far)
        for device in ("lo", far):
            _ip("-n", name, "link", "set", device, "up")
        made.plug()
        yield made
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
