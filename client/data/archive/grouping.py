"""Puts slices together: patient, study, series, and in it stacks of one size and direction."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from medfed.client.data.archive.inventory import Series, Unusable, printable
from medfed.client.data.dicom.geometry import Stack, is_tilted, normal_of, stack_slices
from medfed.client.data.dicom.header_facts import VARYING, Kin, SliceFacts

# Their slices belong in space: without positions, that is worth a note.
_SECTIONS = frozenset({"CT", "MR", "PT"})
_MAX_NOTES = 12
_FIELDS = {
    "modality": "modality",
    "shape": "size",
    "num_frames": "number of frames",
    "pixel_type": "pixel type",
    "orientation": "orientation",
    "spacing": "pixel spacing",
    "scanner": "scanner",
}


def group_slices(facts: Iterable[SliceFacts]) -> tuple[list[Series], list[Unusable]]:
    """Return the series that files make, and the files that repeat an image.

    A series whose files differ in size, direction, spacing or pixel type is split, with a note, and
    so is one that holds a position several times (phases, echoes): by what varies between them.

    Args:
        facts: In the order of their paths: of two files with one image the first is kept.
    """
    kept, repeated = _without_repeats(facts)
    families: dict[tuple[str, ...], dict[Kin, list[SliceFacts]]] = defaultdict(dict)
    for one in kept:
        kin = one.kin
        # Files that name no series are each their own.
        of_series = kin.series or one.path
        family = families[(kin.patient, kin.study, of_series)]
        family.setdefault(kin, []).append(one)
    series: list[Series] = []
    for identity in sorted(families):
        series += _series_of(identity[-1], families[identity])
    return series, repeated


def _without_repeats(facts: Iterable[SliceFacts]) -> tuple[list[SliceFacts], list[Unusable]]:
    first: dict[tuple[bytes, Kin], str] = {}
    kept: list[SliceFacts] = []
    repeated: list[Unusable] = []
    for one in facts:
        # An image UID that two files of different size share is a mistake, not a copy.
        before = first.setdefault((one.uid, one.kin), one.path) if one.uid else one.path
        if before == one.path:
            kept.append(one)
            continue
        name = printable(one.path)
        reason = (
            f"{name} holds the image of {printable(before)} (same SOP instance UID). One of them "
            "is enough; if they differ, one was written with a wrong UID."
        )
        repeated.append(Unusable(name, reason, "duplicate", "same image again"))
    return kept, repeated


def _series_of(key: str, kinds: dict[Kin, list[SliceFacts]]) -> list[Series]:
    """One series, or the parts of a mixed one."""
    mixed: tuple[str, ...] = ()
    if len(kinds) > 1:
        differ = [
            word
            for field, word in _FIELDS.items()
            if len({getattr(kin, field) for kin in kinds}) > 1
        ]
        mixed = (f"its series holds {len(kinds)} kinds of images, which differ in "
                 f"{' and '.join(differ)}; this is one of them",)  # fmt: skip
    parts: list[Series] = []
    for kin, members in kinds.items():
        if kin.num_frames > 1:
            parts += [_multi_frame(one) for one in members]
        else:
            parts += _stacks(kin, members)
    if len(parts) == 1:
        return [replace(parts[0], key=key)]
    return [
        replace(part, key=f"{key}/{number}", notes=(*mixed, *part.notes))
        for number, part in enumerate(parts, start=1)
    ]


def _multi_frame(one: SliceFacts) -> Series:
    spacing = one.kin.spacing
    if one.step_mm and spacing:
        spacing = (one.step_mm, *spacing)
    return _series(one.kin, [one], (one.kin.num_frames, *one.kin.shape), spacing, one.notes,
                   one.kin.num_frames, one.is_stack)  # fmt: skip


def _stacks(kin: Kin, members: list[SliceFacts]) -> list[Series]:
    normal = normal_of(kin.orientation)
    if normal is None or not all(one.position for one in members):
        ordered = sorted(members, key=lambda one: (one.number, one.path))
        notes: tuple[str, ...] = ()
        if kin.modality in _SECTIONS and len(members) > 1:
            notes = ("its slices have no positions; they are ordered by InstanceNumber",)
        return [_pile(kin, ordered, kin.spacing, notes, is_stack=False)]
    stack = stack_slices([one.position for one in members], normal)
    if not stack.is_even and "another" in stack.problem:
        for place, keyword in enumerate(VARYING):
            parts = _split(members, place)
            if len(parts) > 1 and all(_is_once(part, kin) for part in parts):
                note = f"its series holds {len(parts)} stacks, which differ in {keyword}"
                return [
                    _placed(kin, part, stack_slices([one.position for one in part], normal), note)
                    for part in parts
                ]
    return [_placed(kin, members, stack)]


def _split(members: Sequence[SliceFacts], place: int) -> list[list[SliceFacts]]:
    parts: dict[str, list[SliceFacts]] = {}
    for one in members:
        parts.setdefault(one.varying[place], []).append(one)
    return [parts[value] for value in sorted(parts)]


def _is_once(part: Sequence[SliceFacts], kin: Kin) -> bool:
    normal = normal_of(kin.orientation)
    assert normal is not None
    stack = stack_slices([one.position for one in part], normal)
    return "another" not in stack.problem


def _placed(kin: Kin, members: Sequence[SliceFacts], stack: Stack, note: str = "") -> Series:
    normal = normal_of(kin.orientation)
    assert normal is not None
    ordered = [members[index] for index in stack.order]
    notes = tuple(text for text in (note, stack.problem) if text)
    if is_tilted([one.position for one in members], stack, normal):
        notes += ("its slices are shifted against each other (tilted gantry)",)
    step = stack.step_mm or ordered[0].step_mm
    spacing = (step, *kin.spacing) if step and kin.spacing else kin.spacing
    return _pile(kin, ordered, spacing, notes, is_stack=stack.is_even)


def _pile(
    kin: Kin,
    ordered: Sequence[SliceFacts],
    spacing: tuple[float, ...],
    notes: tuple[str, ...],
    *,
    is_stack: bool,
) -> Series:
    number = len(ordered)
    shape = (number, *kin.shape) if number > 1 else kin.shape
    if number == 1:
        spacing = kin.spacing
    told = Counter(note for one in ordered for note in one.notes)
    for text, count in told.most_common(_MAX_NOTES):
        notes += (text if number == 1 else f"{text} ({count} of {number} files)",)
    return _series(kin, ordered, shape, spacing, notes, number, is_stack)


def _series(
    kin: Kin,
    members: Sequence[SliceFacts],
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    notes: tuple[str, ...],
    number: int,
    is_stack: bool,
) -> Series:
    return Series(
        kind="dicom",
        key=kin.series,
        patient=kin.patient,
        study=kin.study,
        modality=kin.modality,
        files=tuple(Path(one.path) for one in members),
        shape=shape,
        spacing_mm=spacing or None,
        scanner=kin.scanner,
        notes=notes,
        num_images=number,
        is_stack=is_stack,
    )
