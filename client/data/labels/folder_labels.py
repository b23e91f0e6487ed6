"""Classes by folder: the name of one of the folders that an image lies in."""

from collections.abc import Collection, Mapping
from pathlib import Path

from medfed.client.data.archive.inventory import printable
from medfed.client.data.labels.collecting import Collected
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.said import WHOLE, About
from medfed.client.data.labels.section import FolderSection
from medfed.client.data.labels.table_labels import renamed


def read_folder_labels(
    section: FolderSection,
    rename: Mapping[str, str],
    index: ArchiveIndex,
    collected: Collected,
    not_images: Collection[int],
) -> None:
    """Add what folders say; series whose number is in `not_images` are left out."""
    report = collected.source(f"folders, level {section.level}", "folders")
    for number, series in enumerate(index.series):
        if number in not_images:
            continue
        names = [_folder_of(index.relative(path), section.level) for path in series.files]
        report.rows += len(names)
        if len(set(names)) == 1:
            names = names[:1]
        for at, name in enumerate(names):
            if not name:
                reason = f"{printable(series.files[at])} lies in no folder of this level"
                collected.refuse(report, 0, reason)
                continue
            report.matched += len(series.files) if len(names) == 1 else 1
            place = (number, WHOLE if len(names) == 1 else at)
            about = About(present=renamed(iter([printable(name)]), rename), absent=None)
            collected.add(f"folder {printable(name)}", 0, [place], about)


def _folder_of(relative: Path, level: int) -> str:
    folders = relative.parts[:-1]
    at = level - 1 if level > 0 else len(folders) + level
    return folders[at] if 0 <= at < len(folders) else ""
