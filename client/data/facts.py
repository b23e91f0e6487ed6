"""What `medfed data check` looks at: a few numbers an image, from its files or from a store.

Shapes: C channels, *S spatial.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.client.data.preparing import Preparation, Prepared, Refused
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import Store
from medfed.client.data.workers import prepared_in_order
from medfed.common.errors import UnreadableImageError

Progress = Callable[[int, int], None]
Side = Literal["train", "test", ""]

# Side of the look, in comparisons of neighbours; 256 bits tell most pictures apart.
_LOOK = 16
_FLAT = 8


@dataclass(frozen=True, kw_only=True)
class PixelFacts:
    """What an image's pixels and mask say.

    Attributes:
        shape: Spatial shape as decoded.
        content: SHA-256 of the decoded pixels of all views, with their shapes.
        lowest: Smallest value.
        highest: Largest value.
        white: Share of pixels at 255 and above.
        outside: Share of pixels outside 0..255.
        masked: Share of the mask that is no background; None without a mask.
        structures: Indices of the structures that the mask holds.
        problem: Why the image cannot be used with its mask or size; empty if it can.
    """

    shape: tuple[int, ...]
    content: str
    lowest: float
    highest: float
    white: float
    outside: float
    masked: float | None = None
    structures: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one image.

    Attributes:
        name: What a finding names: a file and its row, or a store and its row.
        patient: Whose it is: raw key or pseudonym, never printed.
        labels: Class names, as they are written.
        side: Side of the split, "" where it is not known.
        pixels: None if they cannot be read.
        look: uint8 [32], a perceptual hash: close for pictures that look alike. None if the
            picture is of one grey.
        problem: Why the image cannot be used; empty if it can.
        spacing_mm: Size of a voxel, if it is known.
    """

    name: str
    patient: str
    labels: tuple[str, ...]
    side: Side
    pixels: PixelFacts | None
    look: npt.NDArray[np.uint8] | None
    problem: str = ""
    spacing_mm: tuple[float, ...] | None = None


def facts_of_dataset(
    dataset: SourceDataset, prepare: Preparation, *, workers: int, progress: Progress | None
) -> list[Facts]:
    """Decode every record, as preparing a store would, and return what there is to know.

    Args:
        dataset: The source records.
        prepare: What the study asks of an image; its pseudonym key does not matter.
        workers: Processes that decode.
        progress: Called with (done, total).

    Raises:
        RunError: A process that decodes was killed.
    """
    found: list[Facts] = []
    outcomes = prepared_in_order(dataset.records, 0, _Look(prepare), workers)
    with closing(outcomes):
        for record, outcome in zip(dataset.records, outcomes, strict=True):
            found.append(_facts(record, outcome, prepare))
            if progress is not None:
                progress(len(found), len(dataset.records))
    return found


def facts_of_store(
    store: Store, sides: Mapping[int, Side], progress: Progress | None
) -> Iterator[Facts]:
    """Yield what a store holds, row by row.

    Args:
        store: The store.
        sides: Side of the split by row; rows that are left out are no site's.
        progress: Called with (done, total).
    """
    for done, (row, side) in enumerate(sorted(sides.items()), start=1):
        corner = tuple(slice(n) for n in store.shapes[row]) if store.shapes is not None else ()
        image = np.asarray(store.images_NCHW[row])[(slice(None), *corner)]
        mask = None if store.masks_NHW is None else np.asarray(store.masks_NHW[row])[corner]
        labels = [store.labels[row]] if store.one_label else np.flatnonzero(store.labels[row])
        yield Facts(
            name=f"{store.folder.name} row {row}",
            patient=store.patients[row],
            labels=tuple(store.classes[int(index)] for index in labels),
            side=side,
            pixels=_pixel_facts({"": image}, image.shape[1:], mask),
            look=look_of(image[0]),
        )
        if progress is not None:
            progress(done, len(sides))


class _Look:
    """What a worker does: the numbers as a row, the look as its image."""

    def __init__(self, prepare: Preparation) -> None:
        self._prepare = prepare

    def __call__(self, record: SourceRecord) -> Prepared | Refused:
        prepare, dimensions = self._prepare, self._prepare.image.dimensions
        # Labels are judged apart: one that is unknown must not hide what the pixels say.
        record = replace(record, labels=())
        mask, structures, problem = None, (), ""
        try:
            views = prepare.read_views(record)
            if prepare.task.type == "segmentation":
                mask = prepare.read_mask(record)
        except UnreadableImageError as error:
            return Refused(record.source, str(error))
        try:
            prepared = prepare.fit_views(record, views)
            if mask is not None:
                prepared = prepare.add_mask(record, views, prepared, mask)
                structures = tuple(prepared.row["labels"])
        except UnreadableImageError as error:
            problem = str(error)
        first = next(iter(views.values()), np.zeros((0,) * dimensions, np.uint8))
        pixels = _pixel_facts(views, first.shape[:dimensions], mask)
        look = look_of(first if first.ndim == dimensions else first[..., 0])
        row = asdict(replace(pixels, structures=structures, problem=problem))
        return Prepared(row, np.zeros(0, np.uint8) if look is None else look, None)


def _facts(record: SourceRecord, outcome: Prepared | Refused, prepare: Preparation) -> Facts:
    pixels = None
    if isinstance(outcome, Prepared):
        row = outcome.row
        shape, structures = tuple(row["shape"]), tuple(row["structures"])
        pixels = PixelFacts(**{**row, "shape": shape, "structures": structures})
    task, labels = prepare.task, record.labels
    if task.type == "segmentation":
        labels = tuple(task.classes[index] for index in pixels.structures) if pixels else ()
    elif task.type == "report":
        row = prepare.row(record)
        labels = tuple(task.label_names[index] for index in row["labels"])
    return Facts(
        name=record.source,
        patient=record.patient_id,
        labels=labels,
        side=record.split or "",
        pixels=pixels,
        look=outcome.image if isinstance(outcome, Prepared) and outcome.image.size else None,
        problem=outcome.reason
        if isinstance(outcome, Refused)
        else pixels.problem
        if pixels
        else "",
        spacing_mm=record.spacing_mm,
    )


def _pixel_facts(
    views: Mapping[str, npt.NDArray[np.generic]],
    shape: Sequence[int],
    mask: npt.NDArray[np.uint8] | None,
) -> PixelFacts:
    content = hashlib.sha256()
    size = white = outside = 0
    lowest, highest = np.inf, -np.inf
    for array in views.values():
        content.update(f"{array.dtype} {array.shape}\n".encode())
        content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        size += array.size
        low, high = (float(array.min()), float(array.max())) if array.size else (np.inf, -np.inf)
        lowest, highest = min(lowest, low), max(highest, high)
        if high >= 255:
            white += int(np.count_nonzero(np.asarray(array) >= 255))
        if low < 0 or high > 255:
            values = np.asarray(array, dtype=np.float32)
            outside += int(np.count_nonzero((values < -0.5) | (values > 255.5)))
    return PixelFacts(
        shape=tuple(int(side) for side in shape),
        content=content.hexdigest(),
        lowest=lowest,
        highest=highest,
        white=white / max(1, size),
        outside=outside / max(1, size),
        masked=None if mask is None else float(np.count_nonzero(mask)) / max(1, mask.size),
        structures=(),
    )


def look_of(picture: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8] | None:
    """Return whether each of 16 x 16 places is brighter than its left neighbour, as bits.

    Of a volume, the mean along its first axis. None if the picture is of (nearly) one grey.

    Reference: "dHash", N. Krawetz, https://www.hackerfactor.com/blog/index.php?/archives/529
    """
    values = np.asarray(picture, dtype=np.float32)
    flat = values.mean(axis=0) if values.ndim == 3 else values
    if not flat.size or not np.isfinite(flat).all() or flat.max() - flat.min() < _FLAT:
        return None
    small = Image.fromarray(flat).resize((_LOOK + 1, _LOOK), Image.Resampling.BOX)
    greys = np.asarray(small, dtype=np.float32)
    return np.packbits(greys[:, 1:] > greys[:, :-1])
