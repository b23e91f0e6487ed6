"""`load_archive`: a hospital's folders of images as the same data set that public loaders yield."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medfed.client.data.archive.choosing import Chosen, scan_archive
from medfed.client.data.archive.clean_reading import CleanReader
from medfed.client.data.archive.dataset_file import DatasetFile
from medfed.client.data.archive.examinations import ExaminationMaker, check_views
from medfed.client.data.archive.inventory import Inventory
from medfed.client.data.archive.records import RecordMaker
from medfed.client.data.labels.joined import LabelJoin
from medfed.client.data.labels.joining import join_labels
from medfed.client.data.labels.mask_reading import MaskReader
from medfed.client.data.records import SourceDataset, SourceRecord, UnusableSource
from medfed.common.errors import DataError
from medfed.common.study import TaskSection

Progress = Callable[[int, int], None]
Version = tuple[str, int, int]

# Part of the digest: raised when this package turns the same files into other records.
_LOADER = "medfed archive 1"
_OF_VIEWS = {"examination", "examination_pattern", "examination_column"}


@dataclass(frozen=True)
class LoadedArchive:
    """A hospital's data set.

    Attributes:
        dataset: For `prepare_store`.
        chosen: What the scan found, of all folders.
        labels: What the sources of labels say.
        num_other_views: Images of views that the study does not ask for.
    """

    dataset: SourceDataset
    chosen: Chosen
    labels: LabelJoin
    num_other_views: int
    _versions: tuple[Version, ...]

    def digest_again(self) -> str:
        """Return the digest anew: another one if any file changed since it was loaded."""
        now = _versions(Path(path) for path, _, _ in self._versions)
        return self.dataset.digest if now == self._versions else "changed"


def load_archive(
    file: DatasetFile,
    task: TaskSection,
    *,
    dimensions: Literal[2, 3],
    views: tuple[str, ...] = (),
    pseudonym_key: bytes,
    workers: int = 1,
    progress: Progress | None = None,
) -> LoadedArchive:
    """Scan the archive, join its labels and return its images as records.

    Args:
        file: The hospital's `dataset.toml`.
        task: The study's: what a record needs besides its pixels.
        dimensions: The study's: 2 for images, 3 for volumes.
        views: The study's data.views: a record is then an examination with these; else an image.
        pseudonym_key: The site's, to join tables that hold pseudonyms.
        workers: Processes that read headers, and threads that hash.
        progress: Called with (done, total) of the scan.

    Raises:
        DataError: A folder is missing, labels contradict each other and the file says to refuse
            that, a table's encoding is a guess and its classes are none of the study's, or the
            archive has not the study's views.
    """
    check_views(file, task, dimensions, views)
    chosen = scan_archive(file, workers=workers, progress=progress)
    inventory = chosen.inventory
    joined = join_labels(
        file.labels,
        inventory,
        file.folder,
        file.limits,
        structures=task.classes if task.type == "segmentation" else (),
        pseudonym_key=pseudonym_key,
        issuer=file.deidentify.issuer_of_patient_id,
        archive_folders=[file.path(folder) for folder in file.archive.folders],
    )
    _refuse_conflicts(file, joined)
    if task.type == "classification" and (doubts := joined.doubts_beside(task.label_names)):
        raise DataError(" ".join(doubts))
    reader = CleanReader(file.archive.window, file.limits, file.deidentify)
    maker = RecordMaker(
        reader,
        joined,
        dimensions,
        file.archive.slices,
        needs_labels=task.type == "classification",
    )
    examinations = ExaminationMaker(file, maker, views, task)
    if views:
        records = examinations.records(inventory.series)
    else:
        records = [record for series in inventory.series for record in maker.records(series)]
    unusable = [*_unusable(inventory), *maker.unusable]
    masks = [record.read_mask for record in records if isinstance(record.read_mask, MaskReader)]
    paths = sorted(
        {path for series in inventory.series for path in series.files}
        | {path for mask in masks for path in mask.files}
    )
    before = _versions(paths)
    dataset = SourceDataset(
        name=file.name,
        licence=file.licence,
        citation="",
        classes=tuple(sorted({label for record in records for label in record.labels})),
        records=tuple(records),
        digest=_digest(file, dimensions, records, examinations.places, unusable, paths, workers),
        structures=task.classes if task.type == "segmentation" else (),
        dimensions=dimensions,
        unusable=tuple(unusable),
    )
    return LoadedArchive(dataset, chosen, joined, examinations.num_others, before)


def _refuse_conflicts(file: DatasetFile, joined: LabelJoin) -> None:
    if joined.conflicts and file.labels.conflicts == "refuse":
        first = joined.conflicts[0]
        raise DataError(
            f"{len(joined.conflicts)} image(s) of {file.name} have labels that contradict each "
            f"other. The first: {first.what}, {first.subject}. medfed data label lists all. Mend "
            'them, or set labels.conflicts = "leave_out".'
        )


def _unusable(inventory: Inventory) -> Iterator[UnusableSource]:
    """What should have been an image: a README is none, and nothing is wrong with it."""
    for one in inventory.unusable:
        if one.category != "not_an_image":
            yield UnusableSource(one.path, one.reason)


def _versions(paths: Iterator[Path] | Sequence[Path]) -> tuple[Version, ...]:
    found = []
    for path in paths:
        try:
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((str(path), -1, 0))
    return tuple(found)


def _digest(
    file: DatasetFile,
    dimensions: int,
    records: Sequence[SourceRecord],
    places: Sequence[tuple[str, str, str]],
    unusable: Sequence[UnusableSource],
    paths: Sequence[Path],
    workers: int,
) -> str:
    """SHA-256 over the files' bytes and over all that turns them into records."""
    how = {
        "loader": _LOADER,
        # What is about views changes nothing where there are none.
        "archive": file.archive.model_dump(mode="json", exclude=None if places else _OF_VIEWS),
        "limits": file.limits.model_dump(mode="json"),
        "burnt_in": file.deidentify.burnt_in,
        "labels": file.labels.model_dump(mode="json"),
        "dimensions": dimensions,
    }
    whole = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for record in records:
        said = (record.record_id, record.patient_id, record.labels, record.report, record.split)
        whole.update(json.dumps([*said, sorted(record.columns.items())]).encode())
    for place in places:
        whole.update(json.dumps(place).encode())
    for one in unusable:
        whole.update(json.dumps([one.source, one.reason]).encode())
    with ThreadPoolExecutor(workers) as pool:
        for content in pool.map(_content, paths):
            whole.update(content)
    return whole.hexdigest()


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        # Reading it as an image names the file and the reason.
        return b"unreadable"
