"""`MaskReader`: decodes an image's mask from the files that make it, when it is asked for."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.inventory import Series, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.labels.grid import SourceGrid, read_grid
from medfed.client.data.labels.landing import segment_layers
from medfed.client.data.labels.mask_parts import Layer, PicturePart, VolumePart
from medfed.client.data.labels.said import WHOLE
from medfed.client.data.labels.structure_sets import structure_layers

Mask = npt.NDArray[np.uint8]
Overlap = Literal["refuse", "later", "regions"]


@dataclass(frozen=True)
class SegmentPart:
    """Segments of a DICOM segmentation.

    Attributes:
        path: The file.
        rules: Index of the structure and number of the segment.
        key: The site's pseudonym key.
    """

    path: Path
    rules: tuple[tuple[int, int], ...]
    key: bytes = field(repr=False)

    def layers(self, grid: SourceGrid, limits: ReadLimits) -> Iterator[Layer]:
        """Yield structures on slices of [F, H, W]."""
        chosen = tuple((number, index) for index, number in self.rules)
        return segment_layers(self.path, chosen, grid, self.key, limits)


@dataclass(frozen=True)
class OutlinePart:
    """ROIs of an RT structure set; as `SegmentPart`."""

    path: Path
    rules: tuple[tuple[int, int], ...]

    def layers(self, grid: SourceGrid, limits: ReadLimits) -> Iterator[Layer]:
        """Yield structures, [F, H, W]."""
        chosen = tuple((number, index) for index, number in self.rules)
        return structure_layers(self.path, chosen, grid, limits)


Part = PicturePart | VolumePart | SegmentPart | OutlinePart


@dataclass(frozen=True)
class MaskReader:
    """Decodes one mask.

    Attributes:
        parts: The files.
        series: Of the image.
        index: File or frame, or `WHOLE`.
        names: Of the structures, for messages.
        overlap: What becomes of pixels that two structures claim.
        limits: What files are held to.
    """

    parts: tuple[Part, ...]
    series: Series
    index: int
    names: tuple[str, ...]
    overlap: Overlap
    limits: ReadLimits

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it decodes."""
        return tuple(part.path for part in self.parts)

    def __call__(self) -> Mask:
        """Return the mask in the axes of its image.

        Raises:
            UnreadableImageError: A file cannot be read, or does not fit the image.
        """
        try:
            if self.series.kind == "dicom":
                return self._of_dicom()
            mask: Mask = self._composed().copy()
            return mask
        except FileProblem as problem:
            raise problem.of(self.parts[0].path) from None
        except OSError as error:
            raise FileProblem(
                f"It cannot be read: {error.strerror or error}. Scan the folder again.",
                "cannot be opened",
            ).of(self.parts[0].path) from None

    def _composed(self) -> Mask:
        return _composed(
            self.parts, self.series, self.names, self.overlap, self.limits, self._stamps()
        )

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        """What changes when a file does."""
        found = [part.path.stat() for part in self.parts]
        return tuple((one.st_mtime_ns, one.st_size) for one in found)

    def _of_dicom(self) -> Mask:
        grid = read_grid(self.series, self.limits)
        mask = self._composed()
        if self.index != WHOLE:
            plane: Mask = mask[self.index if len(mask) > 1 else 0].copy()
            return plane
        if mask.shape != grid.shape and grid.is_placed:
            raise FileProblem(
                f"Expected a mask of {grid.shape[1]} x {grid.shape[2]} pixels for a volume, got "
                f"{mask.shape[1]} x {mask.shape[2]}. Export it in the size of its image."
            )
        turned: Mask = grid.turned(mask).copy()
        return turned


# Slices of one volume are asked for one after another.
@functools.lru_cache(maxsize=1)
def _composed(
    parts: tuple[Part, ...],
    series: Series,
    names: tuple[str, ...],
    overlap: Overlap,
    limits: ReadLimits,
    stamps: tuple[tuple[int, int], ...],
) -> Mask:
    """All parts together: [F, H, W] of a DICOM series, [D, H, W] or [H, W] of others."""
    mask: Mask | None = None
    # A segmentation may hold no frame of a structure that is nowhere.
    if any(isinstance(part, SegmentPart) and part.rules for part in parts):
        mask = np.zeros(read_grid(series, limits).shape, np.uint8)
    for layer in _layers(parts, series, limits):
        if mask is None:
            mask = np.zeros(layer.inside.shape, np.uint8)
        under = mask[layer.place]
        if layer.inside.shape != under.shape:
            raise FileProblem(
                f"Expected masks of one size, got {list(under.shape)} and "
                f"{list(layer.inside.shape)}."
            )
        _add(under, layer, names, overlap)
    if mask is None:
        raise FileProblem("Expected a structure of the data set in this mask, found none.")
    return mask


def _layers(parts: Iterable[Part], series: Series, limits: ReadLimits) -> Iterator[Layer]:
    for part in parts:
        if isinstance(part, PicturePart):
            for layer in part.layers(limits):
                is_dicom = series.kind == "dicom"
                yield layer._replace(inside=layer.inside[None]) if is_dicom else layer
        elif isinstance(part, VolumePart):
            for layer in part.layers(limits):
                if series.kind == "dicom":
                    unturned = read_grid(series, limits).unturned(layer.inside)
                    layer = layer._replace(inside=unturned)
                yield layer
        else:
            yield from part.layers(read_grid(series, limits), limits)


def _add(mask: Mask, layer: Layer, names: tuple[str, ...], overlap: Overlap) -> None:
    """Paint a layer on the part of a mask that it is of."""
    index, inside = layer.structure, layer.inside
    if overlap == "regions":
        mask[inside] |= np.uint8(1 << index)
        return
    under = mask[inside]
    both = (under != 0) & (under != index + 1)
    if overlap == "refuse" and both.any():
        other = names[int(under[both][0]) - 1]
        raise FileProblem(
            f"Expected structures that exclude one another, got {int(both.sum()):,} pixels"
            f"{' of one slice' if layer.place else ''} that {printable(other)!r} and "
            f"{printable(names[index])!r} share. Set labels.overlap to "
            '"later" (the later covers the earlier) or "regions" (for studies of mode multilabel).',
            "structures that overlap",
        )
    mask[inside] = np.maximum(under, index + 1)
