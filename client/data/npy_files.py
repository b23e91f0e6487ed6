"""uint8 arrays written to .npy one row at a time: memory for a row, whatever the array holds.

Ordinary writes and no memory map: on a full disk a write says so, where a map would kill the
process (SIGBUS).
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.common.errors import DataError

Pixels = npt.NDArray[np.uint8]


def npy_header(shape: Sequence[int]) -> bytes:
    """Return the first bytes of the .npy file of a uint8 array, as `numpy.save` writes them.

    NumPy leaves room for the first side to grow: arrays that differ in it alone have headers of
    the same length.
    """
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(side) for side in shape)}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def write_npy(path: Path, shape: Sequence[int], rows: Iterable[Pixels]) -> None:
    """Write an array of `shape`, [N, *], from its N rows; smaller rows are padded with zeros.

    Padding is at the far ends. The file is the one that `numpy.save` would write.

    Raises:
        DataError: Not N rows.
        OSError: The file cannot be written.
    """
    written = 0
    with path.open("wb") as file:
        file.write(npy_header(shape))
        for row in rows:
            file.write(_padded(row, shape[1:]).data)
            written += 1
    if written != shape[0]:
        raise DataError(f"{path}: expected {shape[0]} rows, got {written}. Prepare it again.")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _padded(row: Pixels, shape: Sequence[int]) -> Pixels:
    if row.shape == tuple(shape):
        return np.ascontiguousarray(row)
    whole = np.zeros(tuple(shape), dtype=np.uint8)
    whole[tuple(slice(side) for side in row.shape)] = row
    return whole
