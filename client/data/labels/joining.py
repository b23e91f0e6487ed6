"""Puts an archive's labels together: by pseudonym, study, series or file, contradictions listed."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.archive.inventory import Inventory, Series, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.labels.collecting import Collected
from medfed.client.data.labels.folder_labels import read_folder_labels
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.joined import (
    Conflict,
    ImageKey,
    ImageLabels,
    LabelJoin,
    SeriesEntry,
    SeriesLabels,
)
from medfed.client.data.labels.masks import FoundMasks, find_masks
from medfed.client.data.labels.reports import read_reports
from medfed.client.data.labels.said import WHOLE, Contradiction, Joined, join_said
from medfed.client.data.labels.section import LabelSection
from medfed.client.data.labels.table_labels import read_table_labels

_WAYS_OUT = {
    "class": 'Mend one of them, or set labels.conflicts = "any" where several rows of one image '
    'each name a class, or "leave_out".',
    "split": "Put all of a patient's images on one side.",
    "patient": "Mend one of them.",
    "report": 'Name one source, key the table by study, or set labels.conflicts = "any" to put '
    "the texts together.",
    "mask": 'Name one of them, or set labels.conflicts = "any" to unite them.',
    "column": "Mend one of them, or key the table by study or image where it differs within a "
    "patient.",
}
_SIMILAR = 0.9
_MOST_COMPARED = 200
_WITHOUT = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")


def join_labels(
    section: LabelSection,
    inventory: Inventory,
    folder: Path,
    limits: ReadLimits,
    *,
    structures: tuple[str, ...] = (),
    pseudonym_key: bytes,
    issuer: bool = False,
    archive_folders: Sequence[Path] = (),
) -> LabelJoin:
    """Read all sources of labels and join them to the images of an inventory.

    Args:
        section: Where labels come from.
        inventory: What was scanned.
        folder: What the section's paths are relative to.
        limits: What each label file is held to.
        structures: What the data set's masks delineate, in order; empty: what the masks name.
        pseudonym_key: The site's key.
        issuer: Whether the issuer of a patient's id is part of the identity.
        archive_folders: The folders that were scanned; empty: `folder`.

    Raises:
        DataError: A table cannot be read or lacks a column, or a folder is not there.
    """
    roots = tuple(archive_folders) or (folder,)
    index = ArchiveIndex(inventory, roots, pseudonym_key, limits, issuer=issuer)
    collected = Collected()
    # Who is whose comes first: other tables may be keyed by patient.
    for table in sorted(section.tables, key=lambda table: not table.patient_column):
        read_table_labels(table, section.rename, index, collected, folder, limits, pseudonym_key)
    masks = find_masks(
        section, index, inventory, collected, folder, limits, structures, pseudonym_key
    )
    if section.folders is not None:
        read_folder_labels(section.folders, section.rename, index, collected, masks.not_images)
    for report in section.reports:
        read_reports(report, index, inventory, collected, folder, limits, masks.not_images)
    joiner = _Joiner(section, index, collected, masks)
    return joiner.joined(inventory.series)


@dataclass
class _Joiner:
    section: LabelSection
    index: ArchiveIndex
    collected: Collected
    masks: FoundMasks

    def __post_init__(self) -> None:
        self._conflicts: list[Conflict] = []
        self._left_out: list[ImageKey] = []
        self._patients: dict[str, str] = {}
        self._sides: dict[str, dict[str, str]] = defaultdict(dict)

    def joined(self, series: Sequence[Series]) -> LabelJoin:
        entries: dict[str, SeriesEntry] = {}
        for number, one in enumerate(series):
            if number not in self.masks.not_images:
                entries[one.key] = self._entry(number, one)
        self._refuse_torn_patients(entries)
        by_image = ImageLabels(entries)
        classes = self._classes()
        gone = set(self._left_out)
        unlabelled = [
            (key, at)
            for key, entry in entries.items()
            for at in entry.units()
            if (key, at) not in gone and not _says(entry.labels(at))
        ]
        return LabelJoin(
            by_image=by_image,
            classes=classes,
            structures=self.masks.structures,
            conflicts=tuple(self._conflicts),
            left_out=tuple(self._left_out),
            unmatched_rows=tuple(self.collected.unmatched),
            unlabelled=tuple(unlabelled),
            problems=tuple(self.collected.problems),
            sources=tuple(self.collected.sources),
            not_images=frozenset(series[number].key for number in self.masks.not_images),
            suggestions=(*self._source_suggestions(), *_similar(classes)),
            patients=self._patients,
        )

    def _entry(self, number: int, one: Series) -> SeriesEntry:
        said = self.collected.said
        has_mask = self.masks.has_mask(number)
        places = [place for at in range(one.num_images) if (place := (number, at)) in said]
        whole_said = said.get((number, WHOLE), [])
        whole = join_said(whole_said)
        self._patients[one.key] = one.patient or whole.patient or one.key
        entry = SeriesEntry(one, None, {}, self.masks.readers(number))
        torn = tuple(self.masks.contradictions.get(number, ()))
        if not places:
            keys = [(one.key, at) for at in entry.units()]
            labels = self._settled(keys, self._name(one, WHOLE), whole, torn, has_mask)
            return SeriesEntry(one, labels, {}, entry.masks)
        images: dict[int, SeriesLabels | None] = {}
        for _, at in places:
            joined = join_said([*whole_said, *said[number, at]])
            images[at] = self._settled([(one.key, at)], self._name(one, at), joined, torn, has_mask)
        # What is known of the series alone is known of the other images too.
        rest = self._settled([], self._name(one, WHOLE), whole, torn, has_mask)
        return SeriesEntry(one, rest, images, entry.masks)

    def _settled(
        self, keys: Sequence[ImageKey], name: str, joined: Joined,
        torn: tuple[Contradiction, ...], has_mask: bool,
    ) -> SeriesLabels | None:  # fmt: skip
        """The labels, or None if there are none or they may not be used."""
        contradictions = (*joined.contradictions, *torn)
        if keys:
            for subject, said in contradictions:
                way_out = _WAYS_OUT[subject.partition(" ")[0]]
                self._conflicts.append(Conflict(name, subject, said, way_out))
        refused = bool(contradictions) and self.section.conflicts != "any"
        refused |= any(one.subject == "split" for one in contradictions)
        is_used = not (joined.leave_out or refused)
        if joined.split and keys and (is_used or self.section.conflicts == "refuse"):
            self._sides[self._patients[keys[0][0]]].setdefault(joined.split, name)
        if not is_used:
            self._left_out += keys
            return None
        if joined == Joined() and not has_mask:
            return None
        return SeriesLabels(
            classes=joined.classes or (),
            is_classified=joined.classes is not None,
            report=joined.report,
            columns=dict(joined.columns),
            split=joined.split,
            patient=joined.patient,
        )

    def _refuse_torn_patients(self, entries: dict[str, SeriesEntry]) -> None:
        torn = {whose for whose, sides in self._sides.items() if len(sides) > 1}
        for whose in sorted(torn):
            sides = self._sides[whose]
            said = tuple((sides[side], side) for side in ("train", "test"))
            self._conflicts.append(
                Conflict("images of one patient", "split", said, _WAYS_OUT["split"])
            )
        for key, entry in entries.items():
            if torn and self._patients[key] in torn:
                self._left_out += [(key, at) for at in entry.units() if entry.labels(at)]
                entries[key] = SeriesEntry(
                    entry.series, None, dict.fromkeys(entry.images), entry.masks
                )

    def _name(self, one: Series, at: int) -> str:
        path = one.files[at] if WHOLE < at < len(one.files) else one.files[0]
        name = printable(self.index.relative(path))
        if at == WHOLE and len(one.files) > 1:
            return f"series of {name}"
        return f"{name}, frame {at + 1}" if at >= len(one.files) else name

    def _classes(self) -> tuple[str, ...]:
        rename = self.section.rename
        columns = [name for table in self.section.tables for name in table.class_columns]
        first = [name for column in columns if (name := rename.get(column, column))]
        found = {
            name
            for said in self.collected.said.values()
            for one in said
            for name in one.about.present or ()
        }
        return tuple(dict.fromkeys([*first, *sorted(found)]))

    def _source_suggestions(self) -> Iterable[str]:
        for one in self.collected.sources:
            yield from (f"{one.name}: {text}" for text in one.suggestions)


def _says(labels: SeriesLabels | None) -> bool:
    return labels is not None and bool(labels.is_classified or labels.read_mask or labels.report)


def _similar(classes: Sequence[str]) -> list[str]:
    """Pairs of classes that may be one, written in two ways; grade 1 and grade 2 are two."""
    said: list[str] = []
    known = [(one, _WITHOUT.sub("", one.casefold())) for one in classes[:_MOST_COMPARED]]
    for number, (one, bare) in enumerate(known):
        for other, before in known[:number]:
            digits = [_DIGITS.findall(name) for name in (one, other)]
            ratio = difflib.SequenceMatcher(None, bare, before).ratio()
            if digits[0] == digits[1] and (bare == before or ratio >= _SIMILAR):
                said.append(
                    f"classes {other!r} and {one!r} may be one: put them together with "
                    "labels.rename"
                )
    return said
