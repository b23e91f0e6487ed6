"""`LabelJoin`: what is known of an archive's images once all sources are put together."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.inventory import Series, Unusable
from medfed.client.data.labels.collecting import SourceReport, UnmatchedRow
from medfed.client.data.labels.guessed import doubt_of
from medfed.client.data.labels.said import WHOLE
from medfed.client.data.records import Split

MaskReader = Callable[[], npt.NDArray[np.uint8]]
# Of a series and the index of a file or frame in it.
ImageKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SeriesLabels:
    """What is known of one image, or of a series as one volume.

    Attributes:
        classes: By name, in the order of `LabelJoin.classes`.
        read_mask: Decodes the mask: uint8 in the very axes of the image as `read_image` (a file or
            frame) or `read_series` (the series) give it; values as in `SourceRecord`. A picture's
            mask may be of another size in the same proportions. Raises UnreadableImageError.
        report: Text. It is as it came, perhaps with names: it stays at the site.
        columns: What tables say besides, by column.
        split: Of the published split.
        is_classified: Whether a source says anything of its classes: without classes it then shows
            none of them, else nothing is known.
        patient: Raw identity that a table gives to an image whose file names no patient. In memory
            only.
    """

    classes: tuple[str, ...] = ()
    read_mask: MaskReader | None = None
    report: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    split: Split | None = None
    is_classified: bool = False
    patient: str = ""


@dataclass(frozen=True)
class Conflict:
    """What two sources say of one image.

    Attributes:
        what: The image, fit to print; it may hold a path: for this hospital's own screen.
        subject: "class", "split", "report", "mask ...", "column ...".
        said: Sources and what each says.
        way_out: What to do.
    """

    what: str
    subject: str
    said: tuple[tuple[str, str], ...]
    way_out: str


@dataclass(frozen=True, slots=True)
class SeriesEntry:
    """A series' labels.

    Attributes:
        series: It.
        whole: What holds for all of it; None if nothing is known or it is left out.
        images: What holds for single files or frames that differ from `whole`.
        masks: Reader of the mask by index; `WHOLE` for the volume.
        split_up: Whether its images are counted one by one though they make a volume.
    """

    series: Series
    whole: SeriesLabels | None
    images: Mapping[int, SeriesLabels | None] = field(default_factory=dict)
    masks: Callable[[int], MaskReader | None] = lambda _: None

    def units(self) -> tuple[int, ...]:
        """The indices that count as images: the volume, or each file or frame."""
        series = self.series
        if series.kind == "nifti":
            return (WHOLE,)
        if series.is_stack and series.num_images > 1 and not self.images:
            return (WHOLE,)
        return tuple(range(series.num_images))

    def labels(self, index: int) -> SeriesLabels | None:
        """What is known of the file or frame `index`, or of the volume."""
        if index == WHOLE and self.series.num_images == 1 and self.images:
            base = self.images[0]
        else:
            base = self.images.get(index, self.whole)
        return None if base is None else replace(base, read_mask=self.masks(index))


class ImageLabels(Mapping[ImageKey, SeriesLabels]):
    """Labels by (series key, index).

    It iterates over what counts as images (a stack as one volume, index -1; else files and frames);
    of a labelled series every other index can be asked for too.
    """

    def __init__(self, entries: Mapping[str, SeriesEntry]) -> None:
        self._entries = entries

    def __getitem__(self, key: ImageKey) -> SeriesLabels:
        entry = self._entries[key[0]]
        inside = WHOLE <= key[1] < entry.series.num_images
        labels = entry.labels(key[1]) if inside else None
        if labels is None:
            raise KeyError(key)
        return labels

    def size_of(self, key: str) -> int:
        """Return how many files or frames a series has."""
        return self._entries[key].series.num_images

    def __iter__(self) -> Iterator[ImageKey]:
        for key, entry in self._entries.items():
            for index in entry.units():
                if entry.labels(index) is not None:
                    yield key, index

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, kw_only=True)
class LabelJoin:
    """All that was found.

    Attributes:
        by_image: See `ImageLabels`. Images in conflict are not in it, save under "any".
        classes: In the order of class columns, then by name.
        structures: What masks delineate, in the order of their values.
        conflicts: What contradicts, each with both sides.
        left_out: Images that are not used: in conflict or uncertain.
        unmatched_rows: Rows and files that say nothing of any image (the first 1,000 a source).
        unlabelled: Images without class, mask and report.
        problems: Files that could not be used, each with its reason.
        sources: What each source gave.
        not_images: Keys of series that are masks of others.
        suggestions: What looks like a slip, each with the way out.
        patients: Patient by series key, raw, in memory only; the key itself where none is known.
    """

    by_image: ImageLabels
    classes: tuple[str, ...]
    structures: tuple[str, ...]
    conflicts: tuple[Conflict, ...]
    left_out: tuple[ImageKey, ...]
    unmatched_rows: tuple[UnmatchedRow, ...]
    unlabelled: tuple[ImageKey, ...]
    problems: tuple[Unusable, ...]
    sources: tuple[SourceReport, ...]
    not_images: frozenset[str]
    suggestions: tuple[str, ...]
    patients: Mapping[str, str] = field(repr=False)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Classes that were read in an encoding that is a guess, a sentence a table."""
        return self.doubts_beside(())

    def doubts_beside(self, known: Collection[str]) -> tuple[str, ...]:
        """Return the doubts but for classes that a study names."""
        left = (
            (one.name, [name for name in one.guessed_classes if name not in known])
            for one in self.sources
        )
        return tuple(doubt_of(name, classes) for name, classes in left if classes)

    def counts(self) -> dict[str, Any]:
        """Return images and patients, in all and a class."""
        images: Counter[str] = Counter({name: 0 for name in self.classes})
        patients: dict[str, set[str]] = defaultdict(set)
        everyone: set[str] = set()
        with_mask = with_report = number = without = 0
        for key, labels in self.by_image.items():
            number += 1
            whose = self.patients[key[0]]
            everyone.add(whose)
            with_mask += labels.read_mask is not None
            with_report += bool(labels.report)
            without += not labels.classes
            images.update(labels.classes)
            for name in labels.classes:
                patients[name].add(whose)
        return {
            "images": number,
            "patients": len(everyone),
            "unlabelled": len(self.unlabelled),
            "left_out": len(self.left_out),
            "with_mask": with_mask,
            "with_report": with_report,
            "without_class": without,
            "classes": {
                name: {"images": count, "patients": len(patients[name])}
                for name, count in images.items()
            },
        }

    def images_with_labels(self) -> dict[str, int]:
        """Return how many images of each series have a class, a mask or a report, by its key.

        A volume counts for all of its slices.
        """
        found: Counter[str] = Counter()
        for key, index in self.by_image:
            if (key, index) not in self._unlabelled:
                found[key] += self.by_image.size_of(key) if index == WHOLE else 1
        return dict(found)

    @cached_property
    def _unlabelled(self) -> frozenset[ImageKey]:
        return frozenset(self.unlabelled)

    def to_json(self, *, with_paths: bool = True) -> dict[str, Any]:
        """Return a table for programs at this hospital, without identities or UIDs.

        Args:
            with_paths: Whether files are named. Paths may hold names: for local use only.
        """
        table: dict[str, Any] = {
            "counts": self.counts(),
            "structures": list(self.structures),
            "num_conflicts": len(self.conflicts),
            "num_unmatched": sum(one.unmatched for one in self.sources),
            "num_problems": len(self.problems),
            "num_masks_among_images": len(self.not_images),
            "suggestions": list(self.suggestions),
            "doubts": list(self.doubts),
        }
        if with_paths:
            table["sources"] = [one.as_table() for one in self.sources]
            table["conflicts"] = [
                {"image": one.what, "subject": one.subject, "way_out": one.way_out,
                 "said": [{"source": source, "value": value} for source, value in one.said]}
                for one in self.conflicts
            ]  # fmt: skip
            table["unmatched_rows"] = [dict(vars(one)) for one in self.unmatched_rows]
            table["problems"] = [
                {"path": one.path, "category": one.category, "reason": one.reason}
                for one in self.problems
            ]
        return table
