"""Noise sources: the right law, no pattern, and a test that rejects the wrong ones.

SecureNoise cannot be seeded, so thresholds are set for a false alarm in about a billion runs.
"""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import kstest, norm

from medfed.common.noise import (
    _CHUNK,
    _DOUBLE_CHUNK,
    NoiseSource,
    SecureNoise,
    SecureUniform,
    SeededNoise,
    _SecureNormals,
)

COUNT = 400_000
FALSE_ALARM = 1e-9
SIGMAS = float(norm.isf(FALSE_ALARM / 2))

SOURCES = {
    "secure": SecureNoise,
    "seeded": lambda: SeededNoise(torch.Generator().manual_seed(5)),
}


def complaints(values: npt.NDArray[np.floating]) -> list[str]:
    """What speaks against independent standard normals, at a false alarm rate of 1e-9 each."""
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    n = len(x)
    found = []
    if kstest(x, norm.cdf).pvalue < FALSE_ALARM:
        found.append("distribution")
    if abs(x.mean()) > SIGMAS / math.sqrt(n):
        found.append("mean")
    if abs((x**2).mean() - 1) > SIGMAS * math.sqrt(2 / n):
        found.append("variance")
    if abs((x**4).mean() - 3) > SIGMAS * math.sqrt(96 / n):
        found.append("tails")
    # The halves of a Box-Muller block lie a chunk apart; 1 and 2 catch plain repetition.
    for lag in (1, 2, _DOUBLE_CHUNK, 2 * _DOUBLE_CHUNK, _CHUNK, 2 * _CHUNK):
        if abs((x[lag:] * x[:-lag]).mean()) > SIGMAS / math.sqrt(n - lag):
            found.append(f"correlation at lag {lag}")
    return found


def draw(source: NoiseSource, count: int = COUNT) -> npt.NDArray[np.float64]:
    return source.normal_like(torch.empty(count, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("name", SOURCES)
def test_noise_is_independent_standard_normals(name: str) -> None:
    assert complaints(draw(SOURCES[name]())) == []


@pytest.mark.parametrize("name", SOURCES)
def test_noise_is_independent_standard_normals_in_float32_and_small_pieces(name: str) -> None:
    source = SOURCES[name]()
    assert complaints(source.normal_like(torch.empty(COUNT)).numpy()) == []
    pieces = [source.normal_like(torch.empty(37)).numpy() for _ in range(COUNT // 37)]
    assert complaints(np.concatenate(pieces)) == []


def test_noise_test_rejects_wrong_noise() -> None:
    x = draw(SecureNoise())
    rng = np.random.default_rng(1)
    assert "variance" in complaints(0.9 * x)
    assert "variance" in complaints(1.02 * x)
    assert "mean" in complaints(x + 0.02)
    # One stream used for two steps, and one value used for two coordinates.
    reused = np.concatenate([x[: 2 * _CHUNK], x[: 2 * _CHUNK]])
    assert f"correlation at lag {2 * _CHUNK}" in complaints(reused)
    assert "correlation at lag 1" in complaints(np.repeat(x[::2], 2))
    assert "distribution" in complaints(rng.uniform(-math.sqrt(3), math.sqrt(3), COUNT))
    assert "tails" in complaints(rng.laplace(scale=math.sqrt(0.5), size=COUNT))


def test_secure_noise_is_another_for_every_source_and_call() -> None:
    first, second = SecureNoise(), SecureNoise()
    streams = [draw(first), draw(first), draw(second)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not np.any(streams[a] == streams[b])
        assert abs((streams[a] * streams[b]).mean()) < SIGMAS / math.sqrt(COUNT)


def test_seeded_noise_is_repeatable_and_depends_on_the_seed() -> None:
    def stream(seed: int) -> list[torch.Tensor]:
        source = SeededNoise(torch.Generator().manual_seed(seed))
        return [source.normal_like(torch.empty(3, 5)), source.normal_like(torch.empty(50))]

    for one, same, other in zip(stream(1), stream(1), stream(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.any(one == other)
    assert not torch.any(stream(1)[0].flatten() == stream(1)[1][:15])


def test_seeded_noise_of_training_is_box_muller_of_aes_under_a_key_of_the_generator() -> None:
    """A twin in double precision: whoever has the seed gets these numbers, on any machine."""
    drawn = SeededNoise(torch.Generator().manual_seed(8)).normal_like(torch.empty(2 * _CHUNK + 3))
    generator = torch.Generator().manual_seed(8)
    words = torch.randint(-(2**31), 2**31, (8,), generator=generator, dtype=torch.int32)
    key = b"".join(int(word).to_bytes(4, "little", signed=True) for word in words)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def pairs(count: int) -> npt.NDArray[np.float64]:
        bits = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u4").astype(np.float64)
        radius = np.sqrt(-2 * np.log((bits[:count] % 2**31 + 1) / 2**31))
        angle = 2 * np.pi * bits[count:] / 2**32
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])

    wanted = np.concatenate([pairs(_CHUNK), pairs(2)[:3]])
    np.testing.assert_allclose(drawn.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert complaints(drawn.numpy()) == []


def test_secure_pairs_are_box_muller_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin number by number, with the C library's functions."""
    count = 5000
    monkeypatch.setattr("os.urandom", bytes)
    drawn = _SecureNormals().draw(2 * count, np.float64)
    stream = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
    words = np.frombuffer(stream.update(bytes(16 * count)), dtype="<u8").tolist()
    radii = [math.sqrt(-2.0 * math.log(1.0 - (word >> 12) / 2**52)) for word in words[:count]]
    angles = [2.0 * math.pi * (word >> 12) / 2**52 for word in words[count:]]
    wanted = [
        radius * turn(angle)
        for turn in (math.cos, math.sin)
        for radius, angle in zip(radii, angles, strict=True)
    ]
    np.testing.assert_allclose(drawn, wanted, rtol=0, atol=1e-13)
    assert {word >> 61 for word in words[count:]} == set(range(8))


def test_threads_may_share_a_secure_source() -> None:
    source = SecureNoise()
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: draw(source, COUNT // 8), range(8)))
    together = np.concatenate(drawn)
    assert complaints(together) == []
    assert len(np.unique(together)) >= len(together) - 1


PRINT_NOISE = """
import hashlib, torch
from medfed.common.noise import SeededNoise
drawn = SeededNoise(torch.Generator().manual_seed(6)).normal_like(torch.empty(1 << 20))
print(hashlib.sha256(drawn.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_seeded_noise_has_the_same_bits_on_an_older_processor() -> None:
    older = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRINT_NOISE],
            env={**os.environ, **more}, check=True, capture_output=True, text=True,
        ).stdout
        for more in ({}, older)
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


def test_seeded_noise_in_whole_chunks_is_that_of_them_all() -> None:
    whole, parts = (SeededNoise(torch.Generator().manual_seed(4)) for _ in range(2))
    reference = torch.empty(5 * _CHUNK)
    drawn = [parts.normal_like(part) for part in reference.split(2 * _CHUNK)]
    assert torch.equal(whole.normal_like(reference), torch.cat(drawn))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (3, 0, 2), (1,), (2,), (3,), (2, 3, 4)]
    + [(n * _CHUNK + d,) for n in (1, 2, 4) for d in (-1, 0, 1)],
    ids=str,
)
def test_noise_has_the_shape_and_type_of_its_reference(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    reference = torch.full(shape, math.nan, dtype=dtype)
    drawn = SOURCES[name]().normal_like(reference)
    assert (drawn.shape, drawn.dtype, drawn.device) == (reference.shape, dtype, reference.device)
    # Every place is written: none keeps what the memory held, none is drawn twice.
    assert bool(drawn.isfinite().all())
    if drawn.numel():
        assert float(drawn.abs().max()) < 9
        assert bool((drawn != 0).all())
    if dtype is torch.float64:
        # One coincidence among 53-bit numbers happens once in a hundred thousand runs.
        assert len(drawn.unique()) >= drawn.numel() - 1


def test_noise_follows_a_reference_that_is_not_contiguous() -> None:
    reference = torch.empty(4, 6).t()
    assert SecureNoise().normal_like(reference).shape == (6, 4)


def test_secure_uniform_is_uniform_in_the_unit_interval() -> None:
    source = SecureUniform()
    x = source.random(COUNT)
    assert (x.dtype, x.shape) == (np.float64, (COUNT,))
    assert x.min() >= 0.0
    assert x.max() < 1.0
    assert kstest(x, "uniform").pvalue > FALSE_ALARM
    assert kstest(0.99 * x, "uniform").pvalue < FALSE_ALARM
    centred = (x - 0.5) * math.sqrt(12)
    assert abs((centred[1:] * centred[:-1]).mean()) < SIGMAS / math.sqrt(COUNT - 1)
    assert not np.any(source.random(COUNT) == x)
    assert source.random(0).shape == (0,)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.9])
def test_secure_uniform_falls_below_a_rate_as_often_as_the_rate(rate: float) -> None:
    count = int((SecureUniform().random(COUNT) < rate).sum())
    assert abs(count - COUNT * rate) < SIGMAS * math.sqrt(COUNT * rate * (1 - rate))
