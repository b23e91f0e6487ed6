"""Instances that arrive: each is written aside, looked at, and only then gets its name.

A file that has its name is whole and is what it says. Its name is made of UIDs alone.
"""

import os
import threading
from collections.abc import Collection
from pathlib import Path

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.elements import tag_of, text_of
from medfed.client.data.dicom.opening import open_dataset
from medfed.client.data.pacs.facts import SeriesFacts, is_uid
from medfed.common.errors import DataError
from medfed.common.files import sync_folder
from medfed.common.processes import is_alive

_ASIDE = ".part"
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TAGS = [int(tag_of(keyword)) for keyword in _UIDS]


class Incoming:
    """Takes the instances of one series. May be called by several threads.

    Args:
        out: The hospital's own folder.
        series: Its UIDs are UIDs.
        wanted: SOP instance UIDs that are expected; others are turned away.

    Attributes:
        refused: Why an instance was turned away, once for each reason.
        failure: What kept this machine from writing; nothing more is taken then.
        num_taken: Instances that are now in their place.
        num_bytes: Their size.
    """

    def __init__(self, out: Path, series: SeriesFacts, wanted: Collection[str]) -> None:
        self.folder = series_folder(out, series)
        self.refused: dict[str, int] = {}
        self.failure: DataError | None = None
        self.num_taken = 0
        self.num_bytes = 0
        self._series = series
        self._wanted = frozenset(wanted)
        self._lock = threading.Lock()
        self._make_folder(out)

    def take(self, content: bytes) -> bool:
        """Write one instance (a whole DICOM file) unless it is none of those expected.

        Returns:
            Whether it is in its place now, or was before.
        """
        with self._lock:
            if self.failure is not None:
                return False
            aside = self.folder / f".{os.getpid()}{_ASIDE}"
            try:
                self._write(aside, content)
                name = self._name_of(aside)
                target = self.folder / f"{name}.dcm"
                if not target.exists():
                    aside.replace(target)
                    self.num_taken += 1
                    self.num_bytes += len(content)
                return True
            except FileProblem as problem:
                self.refused[str(problem)] = self.refused.get(str(problem), 0) + 1
                return False
            except OSError as error:
                self.failure = _cannot_write(self.folder, error)
                return False
            finally:
                aside.unlink(missing_ok=True)

    def missing(self) -> list[str]:
        """Return the UIDs of expected instances that are not there."""
        return sorted(self._wanted - present_instances(self.folder))

    def close(self) -> None:
        """Flush the folder's entries to disk."""
        sync_folder(self.folder)

    def _make_folder(self, out: Path) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self.folder.resolve().is_relative_to(out.resolve()):
                raise DataError(f"{self.folder} leads out of {out} by a link. Remove the link.")
            for left in self.folder.glob(f".*{_ASIDE}"):
                pid = left.name[1 : -len(_ASIDE)]
                if pid.isdigit() and (int(pid) == os.getpid() or not is_alive(int(pid))):
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from None

    def _write(self, aside: Path, content: bytes) -> None:
        # Pictures of patients: for this account alone.
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _name_of(self, path: Path) -> str:
        """The instance's UID, if the file is one of those expected."""
        with path.open("rb") as file:
            found = open_dataset(file, ReadLimits(), tags=_TAGS).dataset
        study, series, instance = (text_of(found, keyword) for keyword in _UIDS)
        if (study, series) != (self._series.study, self._series.uid) or (
            instance not in self._wanted
        ):
            raise FileProblem(
                "Expected instances of the series that was asked for, got others: left out."
            )
        return instance


def series_folder(out: Path, series: SeriesFacts) -> Path:
    """Return the folder of a series: `out`, the study's UID, the series' UID.

    Raises:
        DataError: One is no UID.
    """
    if not (is_uid(series.study) and is_uid(series.uid)):
        raise DataError(
            "Expected UIDs (digits and dots, 64 at most) of study and series, got something else. "
            "The series is left out: nothing that is no UID becomes the name of a file."
        )
    return out / series.study / series.uid


def present_instances(folder: Path) -> set[str]:
    """Return the UIDs of the instances that a series' folder holds."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return set()
    return {name[:-4] for name in names if name.endswith(".dcm") and is_uid(name[:-4])}


def _cannot_write(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder} cannot be written: {error.strerror}. Free space or mend permissions, then run "
        "the same command again: it goes on where it stopped."
    )
