"""Where the Gaussian noise of DP comes from.

In a deployment: AES-256 in counter mode under a fresh key of the operating system, made into
normals by the Box-Muller transform. (Opacus's `secure_mode` needs torchcsprng, which needs torch
1.8.) In a simulation: torch's generator seeded from the study, so that a run can be repeated bit
for bit; the ledger then says that the run is not private.
"""

import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_CHUNK = 1 << 16
_ZEROS = memoryview(bytes(_CHUNK * 16))


class NoiseSource(Protocol):
    """Draws standard normals."""

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return independent N(0, 1) of the shape, type and device of `reference`."""
        ...


class SeededNoise:
    """Repeatable noise for simulations. Not private: who knows the seed can subtract it."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return N(0, 1) drawn on the generator's device."""
        drawn = torch.randn(
            reference.shape,
            generator=self._generator,
            device=self._generator.device,
            dtype=reference.dtype,
        )
        return drawn.to(reference.device)


class SecureNoise:
    """Noise from AES-256-CTR keyed by the operating system; never repeatable."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()

    def normal_like(self, reference: torch.Tensor) -> torch.Tensor:
        """Return N(0, 1), computed in float64 and rounded to the reference's type."""
        count = reference.numel()
        values = np.empty(count, dtype=np.float64)
        for start in range(0, count, 2 * _CHUNK):
            part = values[start : start + 2 * _CHUNK]
            part[:] = self._normals((len(part) + 1) // 2)[: len(part)]
        drawn = torch.from_numpy(values).reshape(reference.shape)
        return drawn.to(device=reference.device, dtype=reference.dtype)

    def _normals(self, pairs: int) -> npt.NDArray[np.float64]:
        """2 * `pairs` normals by Box-Muller from 53-bit uniforms in (0, 1]."""
        bits = np.frombuffer(self._stream.update(_ZEROS[: 16 * pairs]), dtype=np.uint64)
        # torch's functions of float64 take half the time of NumPy's.
        uniforms = torch.from_numpy(((bits >> np.uint64(11)) + 1.0) * 2.0**-53)
        radius = uniforms[:pairs].log_().mul_(-2.0).sqrt_()
        angle = uniforms[pairs:].mul_(2.0 * np.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()]).numpy()


class SecureUniform:
    """Uniforms from the operating system, for Poisson sampling that nobody can predict.

    The amplification by sampling that accounting counts on holds only while the sample is secret.
    """

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Return `size` uniforms in [0, 1) of 53 bits."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
