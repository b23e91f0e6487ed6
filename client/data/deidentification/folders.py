"""A folder of DICOM files to a folder of de-identified copies.

The source is only read. A copy appears whole under a name that says what it was made of, so that
a second run skips what is there, and nothing is ever written over.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfed.client.data.archive.inventory import Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.walk import walk_files
from medfed.client.data.deidentification.file_copies import (
    copy_name,
    deidentified_copy,
    read_source,
    rules_digest,
)
from medfed.client.data.deidentification.profile import edition
from medfed.client.data.deidentification.report import Report
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.pseudonyms import pseudonym
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.files import write_atomically, write_json

logger = logging.getLogger(__name__)

_MARKER = "deidentified.json"
_LIMITS = ReadLimits()


@dataclass
class FolderReport:
    """What was done to a folder.

    Attributes:
        written: Report of each copy by its name.
        present: Names of copies that were there already.
        refused: Reason by source path, for the hospital's own screen: paths may hold names.
    """

    rules: Rules
    written: dict[str, Report] = field(default_factory=dict)
    present: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def to_json(self, key: bytes) -> dict[str, Any]:
        """Return the report as plain values. A refused file is named by a pseudonym of its path."""
        counts: Counter[str] = Counter()
        for report in self.written.values():
            counts.update(report.counts)
        return {
            "profile": f"DICOM PS3.15 {edition()} Annex E, Basic Profile",
            "rules": self.rules.model_dump(mode="json"),
            "num_written": len(self.written),
            "num_present": len(self.present),
            "num_refused": len(self.refused),
            "counts": dict(sorted(counts.items())),
            "written": {name: report.to_json() for name, report in sorted(self.written.items())},
            "present": sorted(self.present),
            "refused": {
                pseudonym(key, "path", path): reason for path, reason in self.refused.items()
            },
        }


def deidentify_folder(
    source: Path,
    out: Path,
    rules: Rules,
    key: bytes,
    progress: Callable[[int, int], None] | None = None,
    limits: ReadLimits = _LIMITS,
) -> FolderReport:
    """Write a de-identified copy of every DICOM file under `source` to `out`.

    Args:
        source: Never written to, never left: links are not followed.
        out: New, or of an earlier run with the same rules and key.
        rules: The site's choice.
        key: The site's pseudonym key.
        progress: Called with (done, total).
        limits: What a file is held to.

    Raises:
        DataError: `source` is no folder or holds more files than the limits allow, one folder is
            inside the other, or `out` was made with other rules or another key.
    """
    _check_folders(source, out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, rules, key)
    report = FolderReport(rules)
    found = list(walk_files(source, limits))
    for number, path in enumerate(found, start=1):
        if isinstance(path, Unusable):
            if path.category != "not_an_image":
                report.refused[path.path.removeprefix(f"{printable(source)}/")] = path.reason
            continue
        try:
            refused = limits.against_size(path.stat().st_size)
            if refused:
                raise UnreadableImageError(refused)
            _copy(path, out, rules, key, report)
        except UnreadableImageError as error:
            report.refused[str(path.relative_to(source))] = str(error)
        except OSError as error:
            report.refused[str(path.relative_to(source))] = (
                f"It cannot be read or its copy not written: {error.strerror}. Free space or "
                "mend permissions, then run again."
            )
        if progress is not None:
            progress(number, len(found))
    logger.info("De-identified %s, refused %s", len(report.written), len(report.refused))
    return report


def _copy(path: Path, out: Path, rules: Rules, key: bytes, report: FolderReport) -> None:
    content = path.read_bytes()
    with _reading():
        dataset = read_source(content)
        name = copy_name(dataset, content, rules, key)
    target = out / name
    if name in report.written or target.exists():
        report.present.append(name)
        return
    with _reading():
        copy = deidentified_copy(dataset, name, rules, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, copy.content)
    report.written[name] = copy.report


@contextmanager
def _reading() -> Iterator[None]:
    """Make whatever a damaged header raises the file's problem: the next one must go on."""
    try:
        with warnings.catch_warnings():
            # pydicom's remarks quote values of the file.
            warnings.simplefilter("ignore")
            yield
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(
            f"The header is damaged ({type(error).__name__}). Export the file again, or leave it "
            "out."
        ) from None


def _check_folders(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise DataError(f"Expected a folder at {source}, found none. Name the archive's folder.")
    inside, outside = out.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise DataError(
            f"Expected {out} to lie outside {source}, and the other way round. Name another "
            "folder: the source is never written to."
        )


def _claim(out: Path, rules: Rules, key: bytes) -> None:
    """Mark `out` with how it is made; refuse one that was made otherwise."""
    marker = out / _MARKER
    digest = rules_digest(rules, key)
    if not marker.exists():
        if any(out.iterdir()):
            raise DataError(
                f"Expected {out} to be empty or of an earlier run, got other files. Name a new "
                "folder."
            )
        write_json(marker, {"rules": rules.model_dump(mode="json"), "digest": digest})
        return
    try:
        known = json.loads(marker.read_text(encoding="utf-8"))["digest"]
    except (ValueError, KeyError, TypeError):
        known = None
    if known != digest:
        raise DataError(
            f"{out} was made with other rules or another key. Name a new folder: in one folder a "
            "patient must have one pseudonym."
        )
