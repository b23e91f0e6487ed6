"""Weighted means through sums of 32-bit whole numbers, as masks need them: `Grid`.

All sites of a round share one public grid. A weighted value is rounded to the nearest multiple of
a power of two, the smallest for which the sum over all sites cannot leave 32 bits:

    step  >=  total_weight * max_value / (2**31 - 1 - num_sites)

So rounding moves the mean over all sites by at most num_sites / 2 * step / total_weight, which is
num_sites * max_value * 2**-31 at most: 5e-7 for 32 sites and max_value 4, whatever the weights.
There is nothing random in it, sums of integers do not depend on the order, and the mean is the
same to the bit on every machine.

Arrays of whole numbers (counters of a model) are summed as they are, without a step.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.secure_sum.masking import Vector
from medfed.common.state_dicts import StateDict

LARGEST_SUM = 2**31 - 1
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One round's grid; all public.

    Attributes:
        max_value: Floating-point values of an update are cut to +/- this.
        total_weight: Sum of the weights of all sites asked.
        num_sites: How many sites were asked.
    """

    max_value: float
    total_weight: int
    num_sites: int

    def __post_init__(self) -> None:
        if not (0 < self.max_value < math.inf and self.num_sites >= 1):
            raise UpdateError(
                f"Expected max_value > 0 and num_sites >= 1, got {self.max_value:g}, "
                f"{self.num_sites}."
            )
        if not self.num_sites <= self.total_weight <= LARGEST_SUM // 2:
            raise UpdateError(
                f"Expected a total weight of at least {self.num_sites}, one for each site, and at "
                f"most {LARGEST_SUM // 2}, got {self.total_weight}. Set federation.weighting = "
                '"uniform".'
            )

    @property
    def step(self) -> float:
        """Spacing of the grid for weighted values: a power of two."""
        return power_of_two_from(
            self.total_weight * self.max_value / (LARGEST_SUM - self.num_sites)
        )

    @property
    def max_whole(self) -> int:
        """Largest size of a whole number in an update; a larger one would overflow the sum."""
        return LARGEST_SUM // self.total_weight

    def encode(self, update: StateDict, weight: int) -> tuple[Vector, int]:
        """Return the weighted update as one vector, arrays after one another, and what was cut.

        The second is how many values were beyond `max_value`; it is the site's own business.

        Raises:
            UpdateError: A weight that is not in the total; NaN or infinite values; a whole number
                beyond `max_whole`.
        """
        if not 1 <= weight <= self.total_weight - self.num_sites + 1:
            raise UpdateError(
                f"Expected a weight of 1 to {self.total_weight - self.num_sites + 1}, got {weight}."
            )
        vector = np.empty(num_values(update), dtype=np.uint32)
        start = num_cut = 0
        for name, array in update.items():
            part = vector[start : start + array.size]
            start += array.size
            if np.issubdtype(array.dtype, np.floating):
                num_cut += self._encode_floats(name, array.ravel(), weight, part)
            else:
                self._encode_whole(name, array.ravel(), weight, part)
        return vector, num_cut

    def decode(self, total: Vector, weight: int, template: StateDict) -> StateDict:
        """Return the mean over the sites whose weights make `weight`, in the template's types.

        Raises:
            UpdateError: A vector of another length, or a weight of none.
        """
        if total.shape != (num_values(template),) or weight < 1:
            raise UpdateError("Expected the sum of the template's values over at least one site.")
        mean, start = {}, 0
        for name, array in template.items():
            part = total[start : start + array.size].view(np.int32).astype(np.float64)
            start += array.size
            if np.issubdtype(array.dtype, np.floating):
                value = part * self.step / weight
            else:
                value = np.rint(part / weight)
            mean[name] = np.asarray(value.reshape(array.shape), dtype=array.dtype)
        return mean

    def _encode_floats(
        self, name: str, values: npt.NDArray[np.generic], weight: int, out: Vector
    ) -> int:
        # The step is a power of two and the weight below 2**30: float32 times both is exact.
        factor, num_cut = weight / self.step, 0
        for begin in range(0, values.size, _CHUNK):
            chunk = values[begin : begin + _CHUNK].astype(np.float64)
            if not np.isfinite(chunk).all():
                raise UpdateError(f"{name}: holds NaN or infinite values.")
            num_cut += int(np.count_nonzero(np.abs(chunk) > self.max_value))
            np.clip(chunk, -self.max_value, self.max_value, out=chunk)
            chunk *= factor
            write_whole(np.rint(chunk, out=chunk), out[begin : begin + _CHUNK])
        return num_cut

    def _encode_whole(
        self, name: str, values: npt.NDArray[np.generic], weight: int, out: Vector
    ) -> None:
        whole = values.astype(np.int64)
        if values.size and int(np.abs(whole).max()) > self.max_whole:
            raise UpdateError(
                f"{name}: expected whole numbers of at most {self.max_whole}, got larger ones. "
                'Set federation.weighting = "uniform".'
            )
        out[:] = (whole * weight).astype(np.uint32)


def num_values(template: StateDict) -> int:
    """Return how many values the arrays hold together."""
    return sum(array.size for array in template.values())


def power_of_two_from(value: float) -> float:
    """Return the smallest power of two that is at least `value`."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def write_whole(values: npt.NDArray[np.float64], out: Vector) -> None:
    """Write whole numbers below 2**53 in size modulo 2**32."""
    out[:] = values.astype(np.int64).astype(np.uint32)
