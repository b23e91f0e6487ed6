"""Finds images that occur twice: the same pixels, or nearly the same look."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

# Bits of 256 by which two looks of one picture may differ: resampled, recompressed, brightened.
MAX_DISTANCE = 7
# A look that so many share is of a kind of picture and not of one picture.
_MAX_SHARED = 64
# Two looks that differ in fewer bits than there are bands agree in one of them.
_NUM_BANDS = 8


def same_content(contents: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions that hold the same, in groups of two and more."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for position, content in enumerate(contents):
        if content is not None:
            groups[content].append(position)
    return [group for group in groups.values() if len(group) > 1]


def nearly_same(looks: Mapping[int, npt.NDArray[np.uint8]]) -> list[tuple[int, int]]:
    """Return pairs of positions whose looks, uint8 [32], differ in at most MAX_DISTANCE bits."""
    found = {pair for pair in _candidates(looks) if _distance(looks, pair) <= MAX_DISTANCE}
    return sorted(found)


def _candidates(looks: Mapping[int, npt.NDArray[np.uint8]]) -> Iterator[tuple[int, int]]:
    width = 32 // _NUM_BANDS
    for band in range(_NUM_BANDS):
        sharing: dict[bytes, list[int]] = defaultdict(list)
        for position, look in looks.items():
            sharing[look[band * width : (band + 1) * width].tobytes()].append(position)
        for group in sharing.values():
            if len(group) <= _MAX_SHARED:
                yield from ((a, b) for n, a in enumerate(group) for b in group[n + 1 :])


def _distance(looks: Mapping[int, npt.NDArray[np.uint8]], pair: tuple[int, int]) -> int:
    return int(np.bitwise_count(looks[pair[0]] ^ looks[pair[1]]).sum())
