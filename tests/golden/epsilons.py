"""Other ways to epsilon, that share no code with medfed: closed forms, quadrature, convolution."""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binom, norm

Floats = npt.NDArray[np.float64]


def analytic_gaussian_epsilon(mu: float, delta: float) -> float:
    """Invert the exact delta of a Gaussian release of sensitivity over noise `mu`.

    Balle and Wang 2018, theorem 8, https://arxiv.org/abs/1805.06530; n releases of noise s compose
    to one with mu^2 = n / s^2.
    """

    def excess(value: float) -> float:
        # log of exp(value) * cdf: their product stays in range where the factors do not.
        below = math.exp(value + norm.logcdf(-mu / 2 - value / mu))
        return float(norm.cdf(mu / 2 - value / mu) - below - delta)

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, mu**2 / 2 + 40 * mu, xtol=1e-10))


def gdp_clt_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The central limit of sampled Gaussians as though it were reached. Often too low: never used.

    Bu et al. 2020, corollary 4, https://arxiv.org/abs/1911.11607.
    """
    mu = sample_rate * math.sqrt(steps * math.expm1(1 / noise_multiplier**2))
    return analytic_gaussian_epsilon(mu, delta)


class Mixture:
    """N(0, s^2) against sum_j Binomial(K, q)(j) N(j, s^2): a patient's images drawn one by one."""

    def __init__(self, noise_multiplier: float, sample_rate: float, images: int) -> None:
        self.noise = noise_multiplier
        self.counts = np.arange(images + 1)
        self.weights = binom.pmf(self.counts, images, sample_rate)

    def loss(self, x: Floats) -> Floats:
        """Log ratio of the densities at `x`; it rises with x."""
        exponents = self.counts[:, None] * (x - self.counts[:, None] / 2) / self.noise**2
        top = exponents.max(axis=0)
        return np.asarray(np.log(self.weights @ np.exp(exponents - top)) + top)

    def above(self, x: Floats) -> tuple[Floats, Floats]:
        """Mass above `x`, with the patient and without."""
        tails = norm.sf((x - self.counts[:, None]) / self.noise)
        return self.weights @ tails, tails[0]

    def one_step_delta(self, epsilon: float) -> float:
        """Exact delta of one step: the outcomes with too large a loss are those above one."""
        x = brentq(lambda x: self.loss(np.array([x]))[0] - epsilon, -1e4, 1e4)
        with_patient, without = self.above(np.array([x]))
        removed = with_patient[0] - math.exp(epsilon) * without[0]
        if epsilon >= -self.loss(np.array([-1e4]))[0]:
            return float(removed)
        y = brentq(lambda x: self.loss(np.array([x]))[0] + epsilon, -1e4, 1e4)
        with_patient, without = (1 - tail[0] for tail in self.above(np.array([y])))
        return max(float(removed), float(without - math.exp(epsilon) * with_patient))

    def epsilon(self, steps: int, delta: float, interval: float = 2e-4) -> float:
        """Convolve the loss distribution, each loss at the nearest grid point (not pessimistic).

        The rounding's bias is taken off by shifting the grid so that the mean is right (Gopi et
        al. 2021, https://arxiv.org/abs/2106.02848).
        """
        x = np.linspace(-12 * self.noise, self.counts[-1] + 12 * self.noise, 100_001)
        losses = self.loss(x)
        with_patient, without = self.above(x)
        removal = self._convolve(losses, -np.diff(with_patient), steps, delta, interval)
        addition = self._convolve(-losses, -np.diff(without), steps, delta, interval)
        return max(removal, addition)

    @staticmethod
    def _convolve(
        losses: Floats, masses: Floats, steps: int, delta: float, interval: float
    ) -> float:
        middle = (losses[:-1] + losses[1:]) / 2
        points = np.round(middle / interval).astype(int)
        lowest = int(points.min())
        one = np.bincount(points - lowest, masses)
        mean = float(masses @ middle)
        shift = mean - float(one @ (np.arange(len(one)) + lowest)) * interval
        # One step's mean and spread say where the sum lies; 60 spreads is more than enough room.
        spread = math.sqrt(float(masses @ (middle - mean) ** 2))
        width = max(60 * spread * math.sqrt(steps), 2 * float(np.abs(losses).max()), 20.0)
        size = 1 << math.ceil(width / interval).bit_length()
        wrapped = np.zeros(size)
        np.add.at(wrapped, np.arange(len(one)) % size, one)
        total = np.fft.irfft(np.fft.rfft(wrapped) ** steps, size)
        # The first grid point of the circle may be any multiple of its size from the mean.
        origin = steps * (lowest * interval + shift)
        values = origin + np.arange(size) * interval
        centre = steps * mean
        values += np.round((centre - values) / (size * interval)) * size * interval

        def excess(epsilon: float) -> float:
            high = values > epsilon
            return float(total[high] @ -np.expm1(epsilon - values[high])) - delta

        return float(brentq(excess, 0.0, float(values.max())))
