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

# Pairs of normals at a time: what a processor's cache holds, or what keeps a GPU busy.
_CHUNK = 1 << 16
_GPU_CHUNK = 1 << 20
_ZEROS = memoryview(bytes(_GPU_CHUNK * 16))


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
        values = torch.empty(count, dtype=torch.float64, device=reference.device)
        chunk = 2 * (_CHUNK if reference.device.type == "cpu" else _GPU_CHUNK)
        for start in range(0, count, chunk):
            part = values[start : start + chunk]
            part[:] = self._normals((len(part) + 1) // 2, reference.device)[: len(part)]
        return values.reshape(reference.shape).to(reference.dtype)

    def _normals(self, pairs: int, device: torch.device) -> torch.Tensor:
        """2 * `pairs` normals by Box-Muller from 53-bit uniforms in (0, 1], made on `device`."""
        bits = np.frombuffer(self._stream.update(_ZEROS[: 16 * pairs]), dtype=np.uint64)
        # 53 bits fit a signed integer and a float64. torch's functions of float64 take half the
        # time of NumPy's.
        whole = torch.from_numpy((bits >> np.uint64(11)).view(np.int64)).to(device)
        uniforms = whole.double().add_(1.0).mul_(2.0**-53)
        radius = uniforms[:pairs].log_().mul_(-2.0).sqrt_()
        angle = uniforms[pairs:].mul_(2.0 * np.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])


class SecureUniform:
    """Uniforms from the operating system, for Poisson sampling that nobody can predict.

    The amplification by sampling that accounting counts on holds only while the sample is secret.
    """

    def random(self, size: int) -> npt.NDArray[np.float64]:
        """Return `size` uniforms in [0, 1) of 53 bits."""
        bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
