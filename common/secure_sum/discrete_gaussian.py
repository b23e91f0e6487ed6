"""Exact samples of the discrete Gaussian, many at a time.

P(y) is proportional to exp(-y**2 / (2 s**2)) over all whole numbers y; the scale s is a whole
number. The algorithm is that of Canonne, Kamath and Steinke (2020, https://arxiv.org/abs/2004.00010,
algorithms 2 and 3): rejection from a discrete Laplace distribution of scale s, which itself is a
uniform number below s, a geometric number of blocks of s, and a sign. Its coins, of probability
exp(-q) for a rational q, are thrown by comparing a uniform number with exp(-q) as far as it takes:

- 53 bits of the uniform against float64 bounds decide nearly every time. The bounds are a factor
  1 -+ 2**-30 apart, a thousand times what float64 gets wrong here;
- what falls between the bounds, about one in a thousand million, is decided with further bits of
  the uniform and exp(-q) to as many digits as needed.

So the distribution is the exact one, given uniform bits; no floating-point hole can betray a value
(Mironov 2012). Time depends on the values drawn, as with any rejection: it is not hidden.
"""

import os
from decimal import Decimal, localcontext
from fractions import Fraction
from hashlib import sha256
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MAX_SCALE = 1 << 31
_MARGIN = 2.0**-30
_BATCH = 1 << 16
_UNIT = 2.0**-53
_Floats = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]
_Whole = npt.NDArray[np.int64]


class WordSource(Protocol):
    """Uniform, independent 64-bit words."""

    def words(self, count: int) -> _Words:
        """Return `count` words."""
        ...


class AesWords:
    """Words from AES-256 in counter mode; use `secure_words` or `seeded_words`."""

    def __init__(self, key: bytes) -> None:
        # Every stream has a key of its own, so the counter may start at zero.
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> _Words:
        """Return the next `count` words of the keystream."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")


def secure_words() -> AesWords:
    """Return words that nobody can repeat: the key is the operating system's."""
    return AesWords(os.urandom(32))


def seeded_words(seed: int) -> AesWords:
    """Return words that `seed` repeats bit for bit, for simulations. Noise of them is not private.

    Args:
        seed: From `common.seeding.derive_seed`.
    """
    return AesWords(sha256(f"medfed seeded words\x1f{seed}".encode()).digest())


def discrete_gaussian(
    count: int, scale: int, source: WordSource, *, margin: float = _MARGIN
) -> _Whole:
    """Return `count` independent samples.

    Args:
        count: How many.
        scale: The parameter s, 1 to 2**31. It is the standard deviation: to 1e-6 for s = 1, and to
            float64 for all larger ones.
        source: Where randomness comes from.
        margin: Relative distance below which exact arithmetic decides. It changes the time and
            which bits are used, never the distribution.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"Expected a scale of 1 to {MAX_SCALE}, got {scale}.")
    samples = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        # About 0.48 of all candidates stay.
        candidates = min(_BATCH, int(2.2 * (count - filled)) + 64)
        drawn = _accepted(candidates, scale, source, margin)[: count - filled]
        samples[filled : filled + drawn.size] = drawn
        filled += drawn.size
    return samples


def _accepted(count: int, scale: int, source: WordSource, margin: float) -> _Whole:
    """Of `count` candidates y = +-(u + v s), those that the Gaussian keeps."""
    uniform, kept = _uniform_below(scale, source.words(count))
    uniform = uniform[kept]
    coins = source.words(2 * uniform.size)
    blocks = _geometric(coins[: uniform.size], source, margin)
    # Bit 0 is not among the 53 that the geometric number took.
    negative = (coins[: uniform.size] & np.uint64(1)).astype(bool)
    size = uniform + blocks * scale
    stays = _coins_below(coins[uniform.size :], uniform, blocks, scale, source, margin)
    stays &= ~(negative & (size == 0))  # zero once, not twice
    return np.where(negative, -size, size)[stays]


def _uniform_below(limit: int, words: _Words) -> tuple[_Whole, npt.NDArray[np.bool_]]:
    """Words modulo `limit`, and which of them are below a multiple of it (the others lean low)."""
    multiple = np.uint64((1 << 64) // limit * limit - 1)
    return (words % np.uint64(limit)).astype(np.int64), words <= multiple


def _geometric(words: _Words, source: WordSource, margin: float) -> _Whole:
    """How many k >= 1 have U < exp(-k): the successes of a coin of exp(-1) before it fails."""
    bits = words >> np.uint64(11)
    exponent = -np.log((bits.astype(np.float64) + 0.5) * _UNIT)
    number = np.floor(exponent)
    # U is known to half a unit: close to 0 that moves the exponent by more than half the margin.
    unsure = (np.abs(exponent - np.rint(exponent)) <= margin) | (bits < 1 / margin)
    for i in np.flatnonzero(unsure):
        lazy = _LazyUniform(int(bits[i]), source)
        k = 0
        while lazy.below_exp_of_minus(Fraction(k + 1)):
            k += 1
        number[i] = k
    return number.astype(np.int64)


def _coins_below(
    words: _Words, uniform: _Whole, blocks: _Whole, scale: int, source: WordSource, margin: float
) -> npt.NDArray[np.bool_]:
    """Throw coins that keep y = u + v s with probability exp(-q).

    q = u / s + (y - s)**2 / (2 s**2): the first makes the remainder of a Laplace variable of scale
    s out of the uniform u, the second makes a Gaussian out of that.
    """
    bits = words >> np.uint64(11)
    r = uniform / scale
    chance = np.exp(-(r + 0.5 * np.square(r + (blocks - 1))))
    low = bits.astype(np.float64) * _UNIT
    stays = low + _UNIT <= chance * (1 - margin)
    unsure = ~stays & (low <= chance * (1 + margin))
    for i in np.flatnonzero(unsure):
        u, v = int(uniform[i]), int(blocks[i])
        q = Fraction(u, scale) + Fraction((u + v * scale - scale) ** 2, 2 * scale * scale)
        stays[i] = _LazyUniform(int(bits[i]), source).below_exp_of_minus(q)
    return stays


class _LazyUniform:
    """A uniform number in [0, 1) of which as many bits are drawn as a comparison needs."""

    def __init__(self, bits: int, source: WordSource) -> None:
        self._bits, self._num_bits = bits, 53
        self._source = source

    def below_exp_of_minus(self, exponent: Fraction) -> bool:
        """Whether the number is less than exp(-exponent)."""
        while True:
            low, high = _exp_bounds(exponent, self._num_bits)
            if self._bits + 1 <= low * 2**self._num_bits:
                return True
            if self._bits >= high * 2**self._num_bits:
                return False
            self._bits = (self._bits << 64) | int(self._source.words(1)[0])
            self._num_bits += 64


def _exp_bounds(exponent: Fraction, num_bits: int) -> tuple[Fraction, Fraction]:
    """Bounds of exp(-exponent), less than 2**-num_bits apart."""
    if exponent == 0:
        return Fraction(1), Fraction(1)
    digits = num_bits // 3 + 20
    with localcontext() as context:
        context.prec = digits
        value = (-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
    # Decimal rounds quotient and exponential correctly; the quotient is below 2**20 here, so both
    # together are off by less than 10**7 units of the last place, relative.
    error = Fraction(1, 10 ** (digits - 8))
    middle = Fraction(value)
    return middle * (1 - error), middle * (1 + error)
