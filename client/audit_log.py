"""The audit log: what was asked of this site and what it did, one line each, for its own people.

`audit.jsonl` in the state folder, apart from the ledger: that says what the data set spent, this
what happened. A line is the canonical JSON (common/ledger) of

    {"event": "...", "facts": {...}, "hash": "...", "index": 0, "previous": "...", "time": "..."}

`hash` is the SHA-256 of the canonical JSON of all other fields, `previous` the `hash` of the line
before (64 zeros at first), `index` counts from 0, `time` is UTC in milliseconds and never
decreases. A file that has grown to its limit becomes `audit.000001.jsonl`, the next one
`audit.000002.jsonl`; the chain goes on from file to file. Keep them all.

The chain shows a line that was changed, taken out or put in. It is not signed: who may write the
folder could write all of it anew, or cut its end off. What a power cut left of a last line is cut
off, kept in `audit.torn`, and noted.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from medfed.client.audit_facts import Event, Fact, check_facts
from medfed.client.audit_lines import AuditEntry, make_line, parse_line, readable
from medfed.common.errors import AuditLogError
from medfed.common.files import sync_folder
from medfed.common.ledger.chain import Link
from medfed.common.ledger.keys import alone

__all__ = ["AuditEntry", "AuditFollower", "AuditLog", "AuditLogError", "Event"]

AUDIT_FILE = "audit.jsonl"
_MAX_BYTES = 8 << 20
_LONGEST_LINE = 4096  # what `audit_facts` lets through is shorter


class AuditLog:
    """The audit log in `state_folder`. Any number of processes and threads may write it.

    Args:
        state_folder: Made when something is written.
        max_bytes: From this size on, a file is closed and the next one begun.
    """

    def __init__(self, state_folder: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self.path = state_folder / AUDIT_FILE
        self._folder = state_folder
        self._max_bytes = max_bytes

    def write(self, event: Event, **facts: Fact) -> None:
        """Append an entry, through to the disk.

        Raises:
            AuditLogError: A fact that must not be written; or the log's last line is damaged.
            OSError: It could not be written, or may be half written.
        """
        checked = check_facts(event, facts)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(self._folder / "audit.lock"):
            link = self._end()
            if self.path.exists() and self.path.stat().st_size >= self._max_bytes:
                self._rotate()
            self._append(event, checked, link)

    def entries(self) -> list[AuditEntry]:
        """Return every entry that can be read, oldest first; `verify` says if some cannot."""
        return [entry for _, content in self._contents() for entry in readable(content)]

    def verify(self) -> int:
        """Check every line and the chain; return how many entries there are.

        A torn last line is no damage: it never became an entry.

        Raises:
            AuditLogError: Naming the first line that cannot be trusted.
        """
        link = Link()
        for path, number, line in self._lines():
            try:
                link = parse_line(line, link).link
            except ValueError as error:
                raise AuditLogError(
                    f"{path}, line {number}: entry {link.num_entries} of the audit log cannot be "
                    f"trusted: {error}. The {link.num_entries} before it hold. Keep the files for "
                    "an inquiry."
                ) from None
        return link.num_entries

    def follow(self) -> "AuditFollower":
        """Return a reader of what is new, for a screen that stays on."""
        return AuditFollower(self)

    def files(self) -> list[Path]:
        """Return the files that there are, oldest first."""
        numbered = sorted(self._folder.glob("audit.[0-9]*.jsonl"))
        return [*numbered, self.path] if self.path.exists() else numbered

    def _append(self, event: Event, facts: dict[str, Fact], link: Link) -> Link:
        line, after = make_line(event, facts, link)
        is_new = not self.path.exists()
        _write_through(self.path, line)
        if is_new:
            sync_folder(self._folder)
        return after

    def _end(self) -> Link:
        """Where the chain goes on; a torn last line is set aside first. The lock is held."""
        for path in reversed(self.files()):
            line, torn = _read_end(path)
            if torn:
                return self._mend(path, line, torn)
            if line:
                return _link_after(line, path)
        return Link()

    def _mend(self, path: Path, line: bytes, torn: bytes) -> Link:
        """Complete a last line that lacks its line end alone; set anything less aside, and say."""
        link = _link_after(line, path) if line else self._before(path)
        try:
            whole = parse_line(torn + b"\n", link)
        except ValueError:
            _write_through(path.with_suffix(".torn"), torn + b"\n")
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size - len(torn))
                os.fsync(file.fileno())
            return self._append("mended", {"bytes": len(torn)}, link)
        _write_through(path, b"\n")
        return whole.link

    def _before(self, path: Path) -> Link:
        """Where the chain stands at the beginning of `path`."""
        earlier = [other for other in self.files() if other != path]
        return _link_after(_read_end(earlier[-1])[0], earlier[-1]) if earlier else Link()

    def _rotate(self) -> None:
        number = len(self.files())
        self.path.rename(self._folder / f"audit.{number:06}.jsonl")
        sync_folder(self._folder)

    def _lines(self) -> Iterator[tuple[Path, int, bytes]]:
        """Yield every whole line with its file and 1-based number, but for a torn last one."""
        for path, content in self._contents():
            for number, line in enumerate(content.split(b"\n")[:-1], start=1):
                yield path, number, line + b"\n"

    def _contents(self) -> list[tuple[Path, bytes]]:
        """Read all files as they were at one moment: another process may rename one meanwhile."""
        while True:
            files = self.files()
            try:
                contents = [(path, path.read_bytes()) for path in files]
            except FileNotFoundError:
                continue
            except OSError as error:
                raise AuditLogError(
                    f"The audit log cannot be read ({error}). Run as the site's user."
                ) from None
            if self.files() == files:
                return contents


class AuditFollower:
    """Reads an audit log bit by bit: each entry once."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._file = 0
        self._position = 0
        self._next = 0

    def news(self) -> list[AuditEntry]:
        """Return the entries since the last call; at first all of them."""
        added = self._added()
        read = self._log.entries() if added is None else added
        # What is written between looking at the file and reading it all would come twice.
        found = [entry for entry in read if entry.index >= self._next]
        if found:
            self._next = found[-1].index + 1
        return found

    def _added(self) -> list[AuditEntry] | None:
        """What was added to the file read last; None if there is another one now."""
        try:
            with self._log.path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                is_same = number == self._file
                start = file.seek(self._position if is_same else 0)
                content = file.read()
        except FileNotFoundError:
            return None
        whole = content.rfind(b"\n") + 1
        self._file, self._position = number, start + whole
        return list(readable(content[:whole])) if is_same else None


def _link_after(line: bytes, path: Path) -> Link:
    try:
        return parse_line(line).link
    except ValueError:
        raise AuditLogError(
            f"The last line of {path} is damaged: nothing can follow it. Move the audit log's "
            "files (audit.*) into a folder of their own for an inquiry; a new log then begins."
        ) from None


def _read_end(path: Path) -> tuple[bytes, bytes]:
    """Return the last whole line, with its end, and what follows it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * _LONGEST_LINE))
        content = file.read()
    whole = content.rfind(b"\n") + 1
    if not whole and size > len(content):
        return content, b""  # no line of ours is that long
    start = content.rfind(b"\n", 0, max(0, whole - 1)) + 1
    return content[start:whole], content[whole:]


def _write_through(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        while content:
            content = content[os.write(handle, content) :]
        os.fsync(handle)
    finally:
        os.close(handle)
