"""Outlines to pixels: a pixel is inside if its centre is, by the even-odd rule.

So outlines within outlines are holes, and the channel of a keyhole outline has no width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def fill_outlines(
    outlines: Sequence[npt.NDArray[np.float64]], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return the pixels [H, W] that closed outlines hold.

    A centre on the upper or left side of an outline is inside, on the lower or right side outside:
    outlines that share a side share no pixel.

    Args:
        outlines: Corners as row and column, [N, 2] each; pixel centres are whole numbers. What lies
            out of the picture is cut off.
        shape: H, W.
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.int32)
    for corners in outlines:
        start, end = corners, np.roll(corners, -1, axis=0)
        # From the upper to the lower end: the rows whose centres it crosses, the lower end apart.
        upper = np.where((start[:, 0] <= end[:, 0])[:, None], start, end)
        lower = np.where((start[:, 0] <= end[:, 0])[:, None], end, start)
        first = np.clip(np.ceil(upper[:, 0]), 0, rows).astype(np.int64)
        behind = np.clip(np.ceil(lower[:, 0]), 0, rows).astype(np.int64)
        count = behind - first
        edge = np.repeat(np.arange(len(corners)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        part = (row - upper[edge, 0]) / (lower[edge, 0] - upper[edge, 0])
        column = upper[edge, 1] + part * (lower[edge, 1] - upper[edge, 1])
        np.add.at(crossings, (row, np.clip(np.ceil(column), 0, columns).astype(np.int64)), 1)
    inside: npt.NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :columns] % 2 == 1
    return inside
