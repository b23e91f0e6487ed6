"""What one mask file paints: for each structure, where it is, on the grid of its image.

Shapes: F files or frames in the series' order, H rows, W columns; D, H, W of a turned volume.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medfed.client.data.archive.inventory import Series, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.picture_files import picture_facts, read_picture_file
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.archive.sniffing import HEAD_BYTES, sniff
from medfed.client.data.archive.volume_files import image_of_pair, volume_facts
from medfed.client.data.labels.grid import read_grid
from medfed.client.data.labels.section import Value
from medfed.client.data.labels.text_files import open_plain
from medfed.client.data.nifti import check_same_geometry, read_geometry, read_labels

_OVER = re.compile(r">\s*(\d+)")


class Layer(NamedTuple):
    """Where a structure is, in a mask or in a part of it.

    Attributes:
        structure: Its index.
        inside: Of the mask's shape, or of the part's.
        place: Which part, as an index of the mask; empty: all of it.
    """

    structure: int
    inside: npt.NDArray[np.bool_]
    place: tuple[int | slice, ...] = ()


@dataclass(frozen=True)
class PicturePart:
    """A PNG, TIFF or JPEG whose values are structures.

    Attributes:
        path: The file.
        rules: Structure's index and its value; empty: `whole` is all that is not 0.
        whole: Index of a structure.
    """

    path: Path
    rules: tuple[tuple[int, Value], ...]
    whole: int = 0

    def check(self, plane: tuple[int, int], limits: ReadLimits) -> None:
        """Refuse a mask of other proportions than its image's rows and columns.

        Raises:
            FileProblem: It is, or it is no picture.
        """
        (rows, columns, *_), _ = picture_facts(self.path, limits)
        # Within a pixel of the larger of the two.
        if abs(rows * plane[1] - columns * plane[0]) > max(rows, columns, *plane):
            raise FileProblem(
                f"Expected a mask with the proportions of its image, {plane[0]} x {plane[1]}, got "
                f"{rows} x {columns}. Export the two again from one study.",
                "mask of another size",
            )

    def layers(self, limits: ReadLimits) -> Iterator[Layer]:
        """Yield structures, [H, W].

        Raises:
            FileProblem: It cannot be read, is coloured, or holds other values than expected.
        """
        values = read_picture_file(self.path, limits)
        if values.ndim == 3:
            if (values != values[..., :1]).any():
                raise FileProblem(
                    "Expected a mask in grey, got a coloured one. Save it with one value a "
                    "structure."
                )
            values = values[..., 0]
        found = [int(value) for value in np.unique(values) if value]
        if not self.rules:
            self._expect_two_values(found)
            yield Layer(self.whole, values > 0)
            return
        wanted = {value for _, value in self.rules}
        # Two conventions of one thing, 0 and 1 or 0 and 255, that are taken for each other.
        for mistaken, meant in ((1, 255), (255, 1)):
            if found == [mistaken] and meant in wanted and mistaken not in wanted:
                raise FileProblem(
                    f"Expected the value {meant} in this mask, got {mistaken} alone. Correct "
                    '`structures`, or say {lesion = "any"}.',
                    "mask of other values",
                )
        for index, value in self.rules:
            yield Layer(index, select(values, value))

    def _expect_two_values(self, found: list[int]) -> None:
        if len(found) > 1:
            shown = ", ".join(str(value) for value in found[:8])
            raise FileProblem(
                f"Expected a mask of two values, got 0, {shown}{', ...' * (len(found) > 8)}. Say "
                "which is which, structures = {lesion = 1, vessel = 2}, or where grey begins to "
                'count, {lesion = ">127"}.',
                "mask of several values",
            )


@dataclass(frozen=True)
class VolumePart:
    """A NIfTI volume whose values are structures, in the axes of the turned image.

    Attributes:
        path: The file.
        rules: As of `PicturePart`.
        series: Its image.
        whole: As of `PicturePart`.
    """

    path: Path
    rules: tuple[tuple[int, Value], ...]
    series: Series
    whole: int = 0

    def check(self, limits: ReadLimits) -> None:
        """Refuse a volume of another geometry than its image.

        Raises:
            UnreadableImageError: It is, or it is no volume.
        """
        self._hold_to_limits(limits)
        if self.series.kind == "nifti":
            image = read_geometry(self.series.files[0])
        else:
            image = read_grid(self.series, limits).geometry()
        label = read_geometry(self.path)
        check_same_geometry(image, label, printable(self.path))

    def layers(self, limits: ReadLimits) -> Iterator[Layer]:
        """Yield structures, [D, H, W].

        Raises:
            UnreadableImageError: It cannot be read or does not fit any more.
        """
        self.check(limits)
        values = read_labels(self.path)
        if not self.rules:
            found = np.unique(values)
            if len(found[found != 0]) > 1:
                raise FileProblem(
                    f"Expected a mask of two values, got {found[:8].tolist()}. Say which is which, "
                    "structures = {liver = 1, tumour = 2}.",
                    "mask of several values",
                )
            yield Layer(self.whole, values != 0)
            return
        for index, value in self.rules:
            yield Layer(index, select(values, value))

    def _hold_to_limits(self, limits: ReadLimits) -> None:
        with open_plain(self.path) as file:
            head = file.read(HEAD_BYTES)
            size = file.seek(0, 2)
        refused = limits.against_size(size)
        if refused:
            raise FileProblem(refused, "beyond the limits", "refused")
        image = image_of_pair(self.path) if self.path.suffix == ".hdr" else None
        size = image.stat().st_size if image else size
        volume_facts(self.path, sniff(head).kind, head, size, limits)


def select(values: npt.NDArray[np.generic], value: Value) -> npt.NDArray[np.bool_]:
    """Return where `values` are what a structure is."""
    if isinstance(value, int):
        return np.asarray(values == value)
    over = _OVER.fullmatch(value)
    if over:
        return np.asarray(values > int(over[1]))  # type: ignore[operator]
    return np.asarray(values != 0)


def check_value(value: Value) -> None:
    """Refuse a value that `select` does not know.

    Raises:
        ValueError: It does not.
    """
    if isinstance(value, str) and value != "any" and not _OVER.fullmatch(value):
        raise ValueError(
            f'expected a whole number, "any" or ">127" as a structure\'s value, got {value!r}'
        )
