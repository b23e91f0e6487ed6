"""Which mask files claim to be which image's."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medfed.client.data.labels.said import WHOLE, Place
from medfed.client.data.labels.section import Value

MaskKind = Literal["png", "nifti", "seg", "rtstruct"]


@dataclass(frozen=True)
class Claim:
    """A file's claim to be (part of) the mask of an image.

    Attributes:
        section: Number of the section that names it: files of one pattern are united.
        source: What messages call it.
        path: The file.
        kind: How it is read.
        picks: Structure and its value, segment number or ROI number.
        is_everything: The one structure is whatever is not 0.
        uid: SOP instance UID of a DICOM mask: the same object twice is one.
    """

    section: int
    source: str
    path: Path
    kind: MaskKind
    picks: tuple[tuple[str, Value], ...]
    is_everything: bool = False
    uid: str = ""


class Claims:
    """All claims by image."""

    def __init__(self) -> None:
        self._by_place: dict[Place, list[Claim]] = defaultdict(list)
        self.series: set[int] = set()
        self._num_sections = 0

    def new_section(self) -> int:
        """Return the number of the next section."""
        self._num_sections += 1
        return self._num_sections

    def add(self, place: Place, claim: Claim) -> None:
        """Note a claim; a copy of an object that is there is none."""
        if claim.uid and any(one.uid == claim.uid for one in self._by_place[place]):
            return
        self._by_place[place].append(claim)
        self.series.add(place[0])

    def of(self, number: int, index: int, num_images: int) -> list[Claim]:
        """Return the claims on a file or frame, or on the volume."""
        claims = list(self._by_place.get((number, WHOLE), ()))
        if index != WHOLE:
            claims += self._by_place.get((number, index), ())
        elif num_images == 1:
            claims += self._by_place.get((number, 0), ())
        return claims

    def names(self, declared: Sequence[str]) -> tuple[str, ...]:
        """Return all structures: as declared, then by name."""
        found = {name for claims in self._by_place.values() for claim in claims
                 for name, _ in claim.picks}  # fmt: skip
        return tuple(dict.fromkeys([*declared, *sorted(found)]))

    def contradictions(self) -> Iterator[tuple[Place, str, tuple[tuple[str, str], ...]]]:
        """Yield images that have a structure from two sources: place, structure and both."""
        for place, claims in self._by_place.items():
            first: dict[str, Claim] = {}
            for claim in claims:
                for name, _ in claim.picks:
                    before = first.setdefault(name, claim)
                    same_pattern = before.section == claim.section and not claim.uid
                    if before.path != claim.path and not same_pattern:
                        both = ((before.source, "a mask"), (claim.source, "a mask"))
                        yield place, name, both
