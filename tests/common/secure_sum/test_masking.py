"""Masks: AES-256-CTR keystreams that cancel; a masked vector is uniform."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chi2

from medfed.common.secure_sum.masking import Vector, add_masks, subtract_masks

CHUNK = (1 << 22) // 4
NEVER = 1e-9  # keys are the operating system's: a bound that a right mask does not reach


def uniform(vector: Vector) -> bool:
    """Whether every byte of the values, and every pair of low bytes of neighbours, is uniform."""
    planes = vector.view(np.uint8).reshape(-1, 4).T
    pairs = (planes[0][:-1:2] >> 2).astype(int) * 64 + (planes[0][1::2] >> 2)
    counts = [np.bincount(plane, minlength=256) for plane in planes]
    counts.append(np.bincount(pairs, minlength=4096))
    for count in counts:
        expected = count.sum() / count.size
        statistic = float(np.sum((count - expected) ** 2 / expected))
        if chi2.sf(statistic, count.size - 1) < NEVER:
            return False
    return True


@pytest.mark.parametrize("size", [0, 1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_mask_is_the_keystream_of_aes_256_ctr(size: int) -> None:
    key = bytes(range(32))
    vector = np.zeros(size, dtype=np.uint32)
    add_masks(vector, [key])
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    assert vector.tobytes() == stream.update(bytes(4 * size))


def test_masks_cancel_modulo_two_to_the_32() -> None:
    keys = [os.urandom(32) for _ in range(3)]
    vector = np.arange(1000, dtype=np.uint32)
    add_masks(vector, keys)
    assert not np.array_equal(vector, np.arange(1000))
    subtract_masks(vector, reversed(keys))
    np.testing.assert_array_equal(vector, np.arange(1000))


def test_masked_vector_is_uniform_and_the_plain_one_is_not() -> None:
    vector = np.zeros(400_000, dtype=np.uint32)
    assert not uniform(vector)
    add_masks(vector, [os.urandom(32)])
    assert uniform(vector)
    # Values below 2**31 alone, as of a signed generator: the test sees one lost bit.
    assert not uniform(vector >> np.uint32(1))


def test_every_bit_of_the_seed_matters() -> None:
    # Flower folds a seed to 32 bits by XOR of its words: two seeds that differ by the same change
    # in two words get the same masks there.
    seed = os.urandom(32)
    other = bytes([seed[0] ^ 1, *seed[1:4], seed[4] ^ 1, *seed[5:]])
    masks = [np.zeros(64, dtype=np.uint32) for _ in range(2)]
    for mask, key in zip(masks, (seed, other), strict=True):
        add_masks(mask, [key])
    assert not np.array_equal(*masks)
