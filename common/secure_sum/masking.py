"""Masks: pseudo-random vectors that are added to a site's vector and cancel, or are removed, later.

A mask is the keystream of AES-256 in counter mode under a key of 256 bits, read as 32-bit numbers,
low byte first. All sums are modulo 2**32, so a vector under one unknown mask is uniform.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Vector = npt.NDArray[np.uint32]
"""Whole numbers modulo 2**32; negative ones as 2**32 less their size."""

_CHUNK_BYTES = 1 << 22
_ZEROS = memoryview(bytes(_CHUNK_BYTES))
_BLOCK_BYTES = 16


def add_masks(vector: Vector, keys: Iterable[bytes]) -> None:
    """Add the mask of each key to a 1-D `vector`, in place."""
    for key in keys:
        _apply(vector, key, np.add)


def subtract_masks(vector: Vector, keys: Iterable[bytes]) -> None:
    """Subtract the mask of each key from a 1-D `vector`, in place."""
    for key in keys:
        _apply(vector, key, np.subtract)


def _apply(vector: Vector, key: bytes, operation: np.ufunc) -> None:
    # A key makes one mask only (its label names round, purpose and sites), so the counter may
    # start at zero.
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK_BYTES))).encryptor()
    buffer = bytearray(_CHUNK_BYTES + _BLOCK_BYTES - 1)
    step = _CHUNK_BYTES // 4
    mask = np.frombuffer(buffer, dtype="<u4", count=step)
    for start in range(0, vector.size, step):
        part = vector[start : start + step]
        stream.update_into(_ZEROS[: 4 * part.size], buffer)
        operation(part, mask[: part.size], out=part)
