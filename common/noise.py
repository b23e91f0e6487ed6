"""Where the Gaussian noise of DP comes from.

In a deployment: AES-256 in counter mode under a fresh key of the operating system, made into
normals by the Box-Muller transform. (Opacus's `secure_mode` needs torchcsprng, which needs torch
1.8.) In a simulation: from the study's seed, so that a run can be repeated bit for bit; the ledger
then says that the run is not private.
"""

import math
import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# Pairs of normals at a time: what a processor's cache holds, or what keeps a GPU busy.
_CHUNK = 1 << 16
_GPU_CHUNK = 1 << 20
_DOUBLE_CHUNK = 1 << 14
_ZEROS = memoryview(bytes(_GPU_CHUNK * 16))
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

    One source may serve several threads: each that draws has a key of its own.
    """

    def __init__(self) -> None:
        self._idle: list[_SecureNormals] = []

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return N(0, 1), computed in float64 and rounded to the reference's type."""
        try:
            normals = self._idle.pop()
        except IndexError:
            normals = _SecureNormals()
        if reference.device.type == "cpu":
            kind = np.float64 if reference.dtype is torch.float64 else np.float32
            values = torch.from_numpy(normals.draw(reference.numel(), kind)).to(reference.dtype)
        else:
            values = normals.draw_on(reference.device, reference.numel(), reference.dtype)
        self._idle.append(normals)
        return values.view(reference.shape)


class _SecureNormals:
    """Normals by Box-Muller under one key, for one thread at a time.

    In double precision, 52 bits for a radius (up to 8.5) and 52 for an angle. Single precision
    would not do: its angles are too few for all pairs of float32 to come out, and who sees a sum
    could tell by the pairs that never do which gradients it cannot be of (Jin et al.,
    arXiv:2112.05307).
    """

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()
        # OpenSSL asks for room for a block more.
        self._buffer = bytearray(16 * _DOUBLE_CHUNK + 15)
        self._cosine = np.empty(_DOUBLE_CHUNK)

    def draw(self, count: int, kind: type[np.floating[Any]]) -> npt.NDArray[Any]:
        """Return `count` normals, drawn in float64 and rounded to `kind`."""
        values = np.empty(count, dtype=kind)
        for start in range(0, count, 2 * _DOUBLE_CHUNK):
            self._fill(values[start : start + 2 * _DOUBLE_CHUNK])
        return values

    def _fill(self, part: npt.NDArray[Any]) -> None:
        pairs = (len(part) + 1) // 2
        self._stream.update_into(_ZEROS[: 16 * pairs], self._buffer)
        bits = np.frombuffer(self._buffer, dtype="<u8", count=2 * pairs)
        # The upper 52 bits as the fraction of a float64 in [1, 2).
        bits >>= 12
        bits |= _BITS_OF_ONE
        radius, angle = bits[:pairs].view(np.float64), bits[pairs:].view(np.float64)
        cosine = self._cosine[:pairs]
        np.subtract(2.0, radius, out=radius)
        # PyTorch's logarithm, cosine and sine of float64 are vectorised with AVX2 too, and of so
        # few numbers it starts no threads.
        torch.from_numpy(radius).log_()
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0 * math.pi  # of one turn to two: the first changes nothing
        torch.cos(torch.from_numpy(angle), out=torch.from_numpy(cosine))
        torch.from_numpy(angle).sin_()
        first, second = part[:pairs], part[pairs:]
        np.multiply(cosine, radius, out=first, casting="same_kind")
        np.multiply(angle[: len(second)], radius[: len(second)], out=second, casting="same_kind")

    def draw_on(self, device: torch.device, count: int, kind: torch.dtype) -> torch.Tensor:
        """Return `count` normals made on a GPU of bits from the processor."""
        values = torch.empty(count, dtype=kind, device=device)
        for start in range(0, count, 2 * _GPU_CHUNK):
            self._fill_on_device(values[start : start + 2 * _GPU_CHUNK])
        return values

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


class SecureUniform:
    """Uniforms from the operating system, for Poisson sampling that nobody can predict.

    The amplification by sampling that accounting counts on holds only while the sample is secret.
    """

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Return `size` uniforms in [0, 1) of 53 bits."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
