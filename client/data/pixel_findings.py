"""Judges what is known of images' pixels: geometry, intensities, masks."""

from collections.abc import Iterator, Sequence

import numpy as np

from medfed.client.data.facts import Facts
from medfed.client.data.finding import Finding, some
from medfed.common.study import StudyConfig

# From these on somebody should look; each is far from what usual images have.
_WHITE = 0.5
_OUTSIDE = 0.01
_CONTRAST = 64
_STRETCH = 2.0
_SMALL = 0.5
_FULL_MASK = 0.95
_SPACING = 4.0
_WINDOW = 'Look at their window (an archive: archive.window = "percentiles" in dataset.toml)'


def judge_pixels(usable: Sequence[Facts], study: StudyConfig) -> Iterator[Finding]:
    """Yield what there is to say of images that can be used, at least one; a line a check."""
    yield from _geometry(usable, study)
    yield from _intensities(usable)
    if study.task.type == "segmentation":
        yield from _masks(usable)


def _geometry(usable: Sequence[Facts], study: StudyConfig) -> Iterator[Finding]:
    data = study.data
    shapes = {one.name: one.pixels.shape for one in usable if one.pixels}
    smallest = tuple(
        min(shape[axis] for shape in shapes.values()) for axis in range(data.dimensions)
    )
    largest = tuple(
        max(shape[axis] for shape in shapes.values()) for axis in range(data.dimensions)
    )
    text = (
        f"{_times(smallest)} to {_times(largest)} pixels"
        if smallest != largest
        else (f"all {_times(smallest)} pixels")
    )
    small = [name for name, shape in shapes.items() if max(shape) < data.image_size * _SMALL]
    if small:
        yield Finding(
            "warning",
            "geometry",
            f"{len(small):,} image(s) are less than half of data.image_size = {data.image_size}: "
            f"{some(small)}. Enlarging shows nothing new: are they thumbnails?",
        )
    long = [name for name, shape in shapes.items() if max(shape) > _STRETCH * min(shape)]
    if long and data.fit == "resize" and data.dimensions == 2:
        yield Finding(
            "warning",
            "geometry",
            f"{len(long):,} image(s) are more than {_STRETCH:g} times as long as wide, and would "
            f"be squeezed into a square: {some(long)}. Crop them.",
        )
    yield from _spacing(usable)
    yield Finding("ok", "geometry", text)


def _spacing(usable: Sequence[Facts]) -> Iterator[Finding]:
    spacings = {one.name: one.spacing_mm for one in usable if one.spacing_mm}
    if not spacings:
        return
    volumes = {name: float(np.prod(spacing)) ** (1 / 3) for name, spacing in spacings.items()}
    middle = float(np.median(list(volumes.values())))
    odd = [n for n, size in volumes.items() if not middle / _SPACING < size < middle * _SPACING]
    if odd:
        yield Finding(
            "warning",
            "geometry",
            f"{len(odd):,} volume(s) have voxels over {_SPACING:g} times larger or smaller than "
            f"the usual {middle:.3g} mm: {some(odd)}. Is their unit right?",
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def _intensities(usable: Sequence[Facts]) -> Iterator[Finding]:
    pixels = [(one.name, one.pixels) for one in usable if one.pixels]
    outside = [name for name, own in pixels if own.outside > _OUTSIDE]
    black = [name for name, own in pixels if own.highest <= 0]
    flat = [name for name, own in pixels if own.lowest == own.highest > 0]
    dull = [name for name, own in pixels if 0 < own.highest - own.lowest < _CONTRAST]
    white = [name for name, own in pixels if own.white > _WHITE and own.lowest < own.highest]
    cases = (
        ("error", outside, "hold values outside 0 to 255, which would be cut off. Set a window"),
        ("warning", black, "are all black. Leave them out"),
        ("warning", flat, "are of one single grey. Leave them out"),
        ("warning", dull, f"span fewer than {_CONTRAST} of 256 greys. {_WINDOW}"),
        ("warning", white, f"are white for more than half. {_WINDOW}, or crop them"),
    )
    found = False
    for level, names, text in cases:
        if names:
            found = True
            line = f"{len(names):,} image(s) {text}: {some(names)}."
            yield Finding("error" if level == "error" else "warning", "intensity", line)
    if not found:
        yield Finding("ok", "intensity", "none empty, flat or saturated")


def _masks(usable: Sequence[Facts]) -> Iterator[Finding]:
    shares = {one.name: one.pixels.masked for one in usable if one.pixels}
    empty = [name for name, share in shares.items() if share == 0]
    full = [name for name, share in shares.items() if share is not None and share > _FULL_MASK]
    if len(empty) == len(shares):
        yield Finding("error", "masks", "all are empty. Was the right folder given?")
        return
    if full:
        yield Finding(
            "warning",
            "masks",
            f"{len(full):,} cover more than {_FULL_MASK:.0%} of the image: {some(full)}. Are "
            "background and structure exchanged?",
        )
    if empty:
        yield Finding(
            "warning",
            "masks",
            f"{len(empty):,} of {len(shares):,} are empty: {some(empty)}. Right if those images "
            "show nothing to delineate, wrong if nobody has drawn there.",
        )
    if not full and not empty:
        yield Finding("ok", "masks", f"all {len(shares):,} delineate something")
