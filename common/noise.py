"""Where the Gaussian noise of DP comes from.

In a deployment: AES-256 in counter mode under a fresh key of the operating system, made into
normals by the Box-Muller transform. (Opacus's `secure_mode` needs torchcsprng, which needs torch
1.8.) In a simulation: from the study's seed, so that a run can be repeated bit for bit; the ledger
then says that the run is not private.
"""

import math
import os
import threading
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

# Pairs of normals at a time: what a processor's cache holds, or what keeps a GPU busy.
_CHUNK = 1 << 16
_GPU_CHUNK = 1 << 20
_DOUBLE_CHUNK = 1 << 15
_ZEROS = memoryview(bytes(_GPU_CHUNK * 16))
_SECTORS = 1 << 12
_BITS_OF_ONE = int(np.float64(1.0).view(np.int64))


class NoiseSource(Protocol):
    """Draws standard normals."""

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return independent N(0, 1) of the shape, type and device of `reference`."""
        ...


class SeededNoise:
    """Repeatable noise for simulations. Not private: who knows the seed can subtract it.

    In single precision on a CPU, where the noise of training is drawn, from AES under a key that
    `generator` draws, in half the time that the generator itself takes; else from `generator`.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._singles: _SingleNormals | None = None

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return N(0, 1) drawn on the generator's device."""
        if self._generator.device.type == "cpu" and reference.dtype is torch.float32:
            if self._singles is None:
                self._singles = _SingleNormals(self._generator)
            return self._singles.draw(reference.shape).to(reference.device)
        drawn = torch.randn(
            reference.shape,
            generator=self._generator,
            device=self._generator.device,
            dtype=reference.dtype,
        )
        return drawn.to(reference.device)


class _SingleNormals:
    """Normals in single precision by Box-Muller: 31 bits for a radius (up to 6.6), 32 for an angle.

    NumPy's functions of float32 give the same bits with AVX2 as with AVX-512.
    """

    def __init__(self, generator: torch.Generator) -> None:
        words = torch.randint(-(2**31), 2**31, (8,), generator=generator, dtype=torch.int32)
        key = words.numpy().astype("<i4").tobytes()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        # OpenSSL asks for room for a block more.
        self._buffer = bytearray(8 * _CHUNK + 15)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        """Return N(0, 1); a chunk at a time, so that a draw in whole chunks is that of them all."""
        values = np.empty(math.prod(shape), dtype=np.float32)
        for start in range(0, len(values), 2 * _CHUNK):
            self._fill(values[start : start + 2 * _CHUNK])
        return torch.from_numpy(values).view(shape)

    def _fill(self, part: npt.NDArray[np.float32]) -> None:
        pairs = (len(part) + 1) // 2
        self._stream.update_into(_ZEROS[: 8 * pairs], self._buffer)
        bits = np.frombuffer(self._buffer, dtype="<i4", count=2 * pairs)
        bits[:pairs] &= 0x7FFFFFFF
        radius = bits[:pairs].astype(np.float32)
        radius += 1.0
        radius *= 2.0**-31
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = bits[pairs:].astype(np.float32)
        angle *= math.pi * 2.0**-31
        first, second = part[:pairs], part[pairs:]
        np.cos(angle, out=first)
        first *= radius
        np.sin(angle[: len(second)], out=second)
        second *= radius[: len(second)]


class SecureNoise:
    """Noise from AES-256-CTR keyed by the operating system; never repeatable.

    One source may serve several threads.
    """

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()
        self._pairs: _DoublePairs | None = None
        self._lock = threading.Lock()

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return N(0, 1), computed in float64 and rounded to the reference's type."""
        device = reference.device
        values = torch.empty(reference.shape, dtype=reference.dtype, device=device)
        flat = values.view(-1)
        fill, chunk = self._fill_on_device, 2 * _GPU_CHUNK
        if device.type == "cpu":
            fill, chunk = self._fill, 2 * _DOUBLE_CHUNK
        with self._lock:
            for start in range(0, len(flat), chunk):
                fill(flat[start : start + chunk])
        return values

    def _fill(self, part: torch.Tensor) -> None:
        if self._pairs is None:
            self._pairs = _DoublePairs()
        drawn = self._pairs.draw(self._stream, (len(part) + 1) // 2)
        part.copy_(torch.from_numpy(drawn[: len(part)]))

    def _fill_on_device(self, part: torch.Tensor) -> None:
        """Box-Muller from 53-bit uniforms in (0, 1]."""
        pairs = (len(part) + 1) // 2
        bits = np.frombuffer(self._stream.update(_ZEROS[: 16 * pairs]), dtype=np.uint64)
        # 53 bits fit a signed integer and a float64.
        whole = torch.from_numpy((bits >> np.uint64(11)).view(np.int64)).to(part.device)
        uniforms = whole.double().add_(1.0).mul_(2.0**-53)
        radius, angle = uniforms[:pairs], uniforms[pairs:].mul_(2.0 * math.pi)
        radius.log_().mul_(-2.0).sqrt_()
        first, second = part[:pairs], part[pairs:]
        first.copy_(angle.cos().mul_(radius))
        second.copy_(angle.sin_().mul_(radius)[: len(second)])


class _DoublePairs:
    """Normals by Box-Muller in double precision: 52 bits for a radius (up to 8.5), 64 for an angle.

    Twelve bits of an angle pick one of 4,096 sectors, whose cosine and sine are in a table; the
    others turn that point by less than 0.0008, for which two terms of either series do (error
    1.5e-14). This takes half the time of a cosine and a sine. Single precision would not do: its
    angles are too few for all pairs of float32 to come out, and who sees a sum could tell by the
    pairs that never do which gradients it cannot be of (Jin et al., arXiv:2112.05307).
    """

    def __init__(self) -> None:
        middles = (np.arange(_SECTORS) + 0.5) * (2.0 * math.pi / _SECTORS)
        self._table = np.cos(middles) + 1j * np.sin(middles)
        # OpenSSL asks for room for a block more.
        self._buffer = bytearray(16 * _DOUBLE_CHUNK + 15)
        self._sector = np.empty(_DOUBLE_CHUNK, dtype=np.int64)
        self._reals = np.empty((2, _DOUBLE_CHUNK))
        self._points = np.empty((2, _DOUBLE_CHUNK), dtype=np.complex128)

    def draw(self, stream: CipherContext, count: int) -> npt.NDArray[np.float64]:
        """Return 2 `count` normals, in memory that the next draw overwrites."""
        stream.update_into(_ZEROS[: 16 * count], self._buffer)
        bits = np.frombuffer(self._buffer, dtype="<u8", count=2 * count)
        sector, (turn, scratch) = self._sector[:count], self._reals[:, :count]
        turned, points = self._points[:, :count]
        np.bitwise_and(bits[count:], _SECTORS - 1, out=sector, casting="unsafe")
        np.take(self._table, sector, out=points, mode="clip")
        # The upper 52 bits as the fraction of a float64 in [1, 2).
        bits >>= 12
        bits |= _BITS_OF_ONE
        radius, angle = bits[:count].view(np.float64), bits[count:].view(np.float64)
        np.subtract(2.0, radius, out=radius)
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        np.subtract(angle, 1.5, out=turn)
        turn *= 2.0 * math.pi / _SECTORS
        # radius * (1 - turn^2 / 2 + i * (turn - turn^3 / 6))
        along = np.multiply(turn, radius, out=angle)
        turn *= turn
        turn *= -0.5
        np.multiply(turn, radius, out=scratch)
        np.add(scratch, radius, out=turned.real)
        turn *= 1.0 / 3.0
        turn *= along
        np.add(turn, along, out=turned.imag)
        points *= turned
        drawn: npt.NDArray[np.float64] = points.view(np.float64)
        return drawn


class SecureUniform:
    """Uniforms from the operating system, for Poisson sampling that nobody can predict.

    The amplification by sampling that accounting counts on holds only while the sample is secret.
    """

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Return `size` uniforms in [0, 1) of 53 bits."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
