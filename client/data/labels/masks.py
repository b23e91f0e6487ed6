"""Masks of an archive's images: which file belongs to which image, and whether it fits."""

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfed.client.data.archive.inventory import Inventory, Series
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.labels.claims import Claim, Claims
from medfed.client.data.labels.collecting import Collected
from medfed.client.data.labels.dicom_masks import find_dicom_masks
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.mask_parts import PicturePart, VolumePart
from medfed.client.data.labels.mask_reading import (
    MaskReader,
    OutlinePart,
    Overlap,
    Part,
    SegmentPart,
)
from medfed.client.data.labels.named_masks import find_named_masks
from medfed.client.data.labels.said import Contradiction
from medfed.client.data.labels.section import LabelSection
from medfed.common.errors import DataError

_MAX_STRUCTURES = 255
_MAX_REGIONS = 8


@dataclass(frozen=True)
class FoundMasks:
    """Masks by image.

    Attributes:
        structures: In the order of their values.
        not_images: Numbers of series that are masks.
        contradictions: By number of a series: two masks of one structure.
    """

    structures: tuple[str, ...]
    not_images: frozenset[int]
    contradictions: Mapping[int, Sequence[Contradiction]]
    _claims: Claims
    _series: tuple[Series, ...]
    _overlap: Overlap
    _limits: ReadLimits
    _key: bytes = field(repr=False)

    def has_mask(self, number: int) -> bool:
        """Whether an image of the series has one."""
        return number in self._claims.series

    def readers(self, number: int) -> Callable[[int], MaskReader | None]:
        """Return what gives the reader of each file or frame, or of the volume (-1)."""
        return lambda index: self._reader(number, index)

    def _reader(self, number: int, index: int) -> MaskReader | None:
        series = self._series[number]
        claims = self._claims.of(number, index, series.num_images)
        if not claims:
            return None
        parts = tuple(self._part(claim, series) for claim in claims)
        return MaskReader(parts, series, index, self.structures, self._overlap, self._limits)

    def _part(self, claim: Claim, series: Series) -> Part:
        indexed = [(self.structures.index(name), value) for name, value in claim.picks]
        if claim.kind == "png":
            rules = () if claim.is_everything else tuple(indexed)
            return PicturePart(claim.path, rules, indexed[0][0])
        if claim.kind == "nifti":
            rules = () if claim.is_everything else tuple(indexed)
            return VolumePart(claim.path, rules, series, indexed[0][0])
        numbers = tuple((at, int(value)) for at, value in indexed)
        if claim.kind == "seg":
            return SegmentPart(claim.path, numbers, self._key)
        return OutlinePart(claim.path, numbers)


def find_masks(
    section: LabelSection,
    index: ArchiveIndex,
    inventory: Inventory,
    collected: Collected,
    folder: Path,
    limits: ReadLimits,
    structures: tuple[str, ...],
    key: bytes,
) -> FoundMasks:
    """Return the masks that a section names, each held against its image's header.

    Arguments as of `join_labels`.

    Raises:
        DataError: A folder is missing, or a structure is none of the data set's.
    """
    claims = Claims()
    not_images: set[int] = set()
    default = structures[0] if len(structures) == 1 else "mask"
    for one in section.masks:
        _check_structures(one.structures, structures)
        if one.pattern:
            not_images |= find_named_masks(one, index, collected, claims, folder, limits, default)
        else:
            find_dicom_masks(
                one, index, inventory, collected, claims, folder, limits, structures, key
            )
    names = structures or claims.names([name for one in section.masks for name in one.structures])
    most = _MAX_REGIONS if section.overlap == "regions" else _MAX_STRUCTURES
    if len(names) > most:
        raise DataError(
            f"Expected at most {most} structures, got {len(names)}: name those that matter, "
            "[labels.masks] structures."
        )
    contradictions: dict[int, list[Contradiction]] = defaultdict(list)
    for (number, _), subject, said in claims.contradictions():
        contradictions[number].append(Contradiction(f"mask {subject}", said))
    return FoundMasks(
        names,
        frozenset(not_images),
        contradictions,
        claims,
        index.series,
        section.overlap,
        limits,
        key,
    )


def _check_structures(named: Mapping[str, object], structures: Sequence[str]) -> None:
    for name in named if structures else ():
        if name not in structures:
            near = difflib.get_close_matches(name, structures, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(structures)}."
            raise DataError(f"labels.masks: {name} is no structure of the data set. {hint}")
