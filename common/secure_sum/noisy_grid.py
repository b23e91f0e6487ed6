"""Distributed differential privacy of sites: each adds its share of the noise before it masks.

The server learns the sum of clipped updates with the noise of all, and nothing else, so the sum is
private against the server as well. What one site does:

    x = update, clipped to L2 norm max_update_norm over all values, in units of the step
    y = round(x) + discrete Gaussian of scale s,  modulo 2**32

Sensitivity. Rounding to the nearest moves each of d values by at most 1/2, so
|round(x)| <= max_update_norm / step + sqrt(d) / 2 =: b. All noise is set against b, not against the
norm before rounding: the stated noise multiplier is the true one.

Scale. Of n sites asked, at least t (the threshold) stay, and ceil(honest_sites * n) are honest:
they add their noise and tell nobody. In the worst case all who drop out are honest. The m = t +
honest - n that are left then reach noise_multiplier * b alone:
s = ceil(noise_multiplier * b / sqrt(m)). The site whose privacy is at stake is one of the m. When
more stay there is more noise than stated, at most sqrt(n / m) times.

Cost. A sum of m discrete Gaussians of scale s is close to one of scale sqrt(m) s. It has Renyi
divergence of order alpha at most alpha / 2 * (b / (sqrt(m) s) + sqrt(d) tau)**2, with
tau = 10 sum_{k=1}^{m-1} exp(-2 pi**2 s**2 k / (k + 1)). Here s is large and sqrt(d) tau below
1e-100, or the grid is refused; what is left is the bound of the Gaussian with `noise_multiplier`.

Neighbours. Two runs in which one site's update is its own or zero. Who takes part is known.

Overflow. The step is the smallest power of two for which the sum, were all updates along one
axis, leaves 32 bits with a probability below 1e-12 a round (the noise is sub-Gaussian).
Overflow would spoil the model, not privacy: reducing modulo 2**32 is post-processing.

Reference: Kairouz, Liu, Steinke 2021, https://arxiv.org/abs/2102.06387, proposition 14.
"""

import math
from dataclasses import dataclass

import numpy as np

from medfed.common.errors import StudyError, UpdateError
from medfed.common.secure_sum.discrete_gaussian import MAX_SCALE, WordSource, discrete_gaussian
from medfed.common.secure_sum.masking import Vector
from medfed.common.secure_sum.quantise import (
    LARGEST_SUM,
    num_values,
    power_of_two_from,
    write_whole,
)
from medfed.common.state_dicts import StateDict

MAX_OVERFLOW = 1e-12
_LOG_MAX_TAU = math.log(1e-100)
_CHUNK = 1 << 20
# More than float64 loses on a norm of 2**28 values, so that the bound holds exactly.
_ROUNDING = 1 + 2.0**-20


@dataclass(frozen=True, kw_only=True)
class NoisyGrid:
    """One round's grid and noise; all public.

    Attributes:
        max_update_norm: L2 bound on one site's update.
        noise_multiplier: Standard deviation, over the bound after rounding, of the noise of the
            honest sites that stay in the worst case.
        num_sites: n, sites asked in the round.
        threshold: t, sites that must stay.
        honest_sites: Share of the sites asked that are counted on.
        num_values: d, values of an update.
    """

    max_update_norm: float
    noise_multiplier: float
    num_sites: int
    threshold: int
    honest_sites: float
    num_values: int

    def __post_init__(self) -> None:
        if self.num_honest_left < 1:
            raise StudyError(
                f"Expected an honest site among those that stay, got none for sure: of "
                f"{self.num_sites} sites {self.threshold} must stay and secure_aggregation."
                f"honest_sites = {self.honest_sites:g} are honest. Raise honest_sites or threshold."
            )
        _ = self.step
        tau = log_tau(self.scale, self.num_sites) + 0.5 * math.log(self.num_values)
        if tau > _LOG_MAX_TAU:
            raise StudyError(
                f"Noise of scale {self.scale} at each site is too coarse for its sum to count as "
                "Gaussian. Raise privacy.noise_multiplier, or take fewer sites."
            )

    @property
    def num_honest_left(self) -> int:
        """m: honest sites among those that stay, in the worst case."""
        honest = math.ceil(self.honest_sites * self.num_sites - 1e-9)
        return self.threshold + honest - self.num_sites

    @property
    def step(self) -> float:
        """Spacing of the grid, a power of two.

        Raises:
            StudyError: On no grid of 32 bits is rounding small against the bound.
        """
        step = power_of_two_from(self.num_sites * self.max_update_norm / LARGEST_SUM)
        while self.max_update_norm / step >= 5 * math.sqrt(self.num_values):
            if self._largest_sum(step) <= LARGEST_SUM and self._scale(step) <= MAX_SCALE:
                return step
            step *= 2
        raise StudyError(
            f"{self.num_sites} sites, {self.num_values} values and noise_multiplier "
            f"{self.noise_multiplier:g}: in 32 bits, rounding would take more than a tenth of the "
            "bound. Lower privacy.noise_multiplier, take fewer sites or a smaller model, or freeze "
            "a part of it."
        )

    @property
    def scale(self) -> int:
        """s: the discrete Gaussian's parameter at each site, in steps."""
        return self._scale(self.step)

    @property
    def bound(self) -> float:
        """b: L2 bound on one site's rounded update, in steps."""
        return self._bound(self.step)

    def encode(self, update: StateDict, source: WordSource) -> Vector:
        """Return an update clipped, rounded and noised, as one vector; arrays after one another.

        Counters and arrays of dimension 0 are clipped and noised as all others. An update of zeros
        becomes noise.

        Raises:
            UpdateError: NaN or infinite values, or another number of values than `num_values`.
        """
        if num_values(update) != self.num_values:
            raise UpdateError(
                f"Expected an update of {self.num_values} values, got {num_values(update)}."
            )
        factor = self._factor(update)
        vector = np.empty(self.num_values, dtype=np.uint32)
        step, scale, start = self.step, self.scale, 0
        for array in update.values():
            flat = array.ravel()
            for begin in range(0, flat.size, _CHUNK):
                chunk = flat[begin : begin + _CHUNK].astype(np.float64)
                chunk *= factor
                chunk /= step
                out = vector[start : start + chunk.size]
                write_whole(np.rint(chunk, out=chunk), out)
                noise = discrete_gaussian(chunk.size, scale, source)
                out += noise.astype(np.uint32)
                start += chunk.size
        return vector

    def decode(self, total: Vector, expected_sites: float, template: StateDict) -> StateDict:
        """Return the noisy sum over the public number of sites, in the template's types.

        Raises:
            UpdateError: A vector of another length.
        """
        if total.shape != (num_values(template),):
            raise UpdateError("Expected the sum of the template's values.")
        mean, start = {}, 0
        for name, array in template.items():
            part = total[start : start + array.size].view(np.int32).astype(np.float64)
            start += array.size
            value = part * self.step / expected_sites
            if not np.issubdtype(array.dtype, np.floating):
                value = np.rint(value)
            mean[name] = np.asarray(value.reshape(array.shape), dtype=array.dtype)
        return mean

    def _factor(self, update: StateDict) -> float:
        """What brings the update within the bound; 1 if it is."""
        if not all(np.isfinite(array).all() for array in update.values()):
            raise UpdateError("Expected an update of finite values to clip, got NaN or infinity.")
        peak = max((float(np.max(np.abs(a), initial=0)) for a in update.values()), default=0.0)
        if peak == 0:
            return 1.0
        # Divided by the largest value first: squares of float64 could overflow.
        squares = [
            float(np.sum(np.square(flat[begin : begin + _CHUNK].astype(np.float64) / peak)))
            for flat in (array.ravel() for array in update.values())
            for begin in range(0, flat.size, _CHUNK)
        ]
        norm = peak * math.sqrt(math.fsum(squares)) * _ROUNDING
        return 1.0 if norm <= self.max_update_norm else self.max_update_norm / norm

    def _bound(self, step: float) -> float:
        return self.max_update_norm / step + math.sqrt(self.num_values) / 2

    def _scale(self, step: float) -> int:
        needed = self.noise_multiplier * self._bound(step) / math.sqrt(self.num_honest_left)
        return math.ceil(needed * _ROUNDING)

    def _largest_sum(self, step: float) -> float:
        """What no value of the sum exceeds, but with probability MAX_OVERFLOW."""
        signal = self.num_sites * (self.max_update_norm / step + 0.5)
        # P(|noise| > k sd) <= 2 exp(-k**2 / 2) for each of the values (sub-Gaussian).
        deviations = math.sqrt(2 * math.log(2 * self.num_values / MAX_OVERFLOW))
        return signal + deviations * math.sqrt(self.num_sites) * self._scale(step)


def log_tau(scale: float, num_terms: int) -> float:
    """Return the logarithm of an upper bound of tau (see the module) for a sum of `num_terms`."""
    if num_terms < 2:
        return -math.inf
    # k / (k + 1) >= 1/2, so each of the terms is at most the first.
    return math.log(10 * (num_terms - 1)) - math.pi**2 * scale**2
