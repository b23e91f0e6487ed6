"""`WeightedMean`: a mean that does not depend on the order in which its terms arrive.

Float addition is not associative, so folding updates in as they arrive would make the result depend
on the network. Here each term is split into two integers at fixed powers of two and added as
integers: the sum is exact to 2**-70 whatever the order, and one accumulator of 16 bytes a weight is
all the memory it takes for any number of sites.

    w * u  =  high * 2**-20  +  low * 2**-70  +  (less than 2**-71, cut off term by term)
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict

_HIGH_BITS = 20
_LOW_BITS = 70
MAX_MAGNITUDE = 2.0**31
"""Largest |weight * value| of one term; larger ones are refused by screening."""
MAX_TERMS = 2**11
"""Most terms of one mean: keeps the sums of both parts below 2**63."""
_BLOCK = 2**16
"""Values at a time: what is made on the way stays in the processor's cache."""
_Counts = npt.NDArray[np.uint64]
# Halfway up the powers of two in which the last of a float64's 52 bits is worth what it should be.
_HIGH = np.float64(1.5 * 2.0 ** (52 - _HIGH_BITS))
_LOW = np.float64(1.5 * 2.0 ** (52 - _LOW_BITS))
_HIGH_OFFSET, _LOW_OFFSET = (int(one.view(np.uint64)) for one in (_HIGH, _LOW))


def check_magnitude(update: StateDict, weight: int = 1) -> None:
    """Check that no value, times `weight`, is beyond `MAX_MAGNITUDE`, and that all are finite.

    Raises:
        UpdateError: Naming the array.
    """
    for name, array in update.items():
        # No copy of the absolute values; either end is NaN if any value is.
        for end in (np.max(array, initial=0), np.min(array, initial=0)):
            peak = abs(float(end)) * weight
            if not peak <= MAX_MAGNITUDE:
                raise UpdateError(f"{name}: weighted value {peak:g} exceeds {MAX_MAGNITUDE:g}.")


class _Splitter:
    """Splits values into the two integers of the formula above and adds those to their sums.

    By addition alone: the last bit of `_HIGH` is worth 2**-20, so adding up to 2**31 to it rounds
    that to whole multiples, and the bits of what comes out, read as an integer, count them up from
    those of `_HIGH`. Sums hold `_HIGH_OFFSET` once for each term, modulo 2**64, until read.
    """

    def __init__(self, largest: int) -> None:
        """`largest` is the size of the largest array."""
        self._rest, self._part = np.empty((2, min(largest, _BLOCK)))

    def add(
        self, values: npt.NDArray[np.generic], weight: int, high: _Counts, low: _Counts
    ) -> None:
        """Add `weight * values` to the two parts of their sum, in place; all flat."""
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._add_block(values[block], weight, high[block], low[block])

    def _add_block(
        self, values: npt.NDArray[np.generic], weight: int, high: _Counts, low: _Counts
    ) -> None:
        rest, part = self._rest[: values.size], self._part[: values.size]
        rest[:] = values
        rest *= weight  # float32 times a weight below 2**29 is exact in float64
        np.add(rest, _HIGH, out=part)
        high += part.view(np.uint64)
        part -= _HIGH
        rest -= part
        rest += _LOW
        low += rest.view(np.uint64)


class WeightedMean:
    """Accumulates `sum(w * u)` and `sum(w)` over updates of equal names and shapes."""

    def __init__(self, template: StateDict) -> None:
        self._types = {name: array.dtype for name, array in template.items()}
        self._high = {n: np.zeros(a.shape, dtype=np.uint64) for n, a in template.items()}
        self._low = {n: np.zeros(a.shape, dtype=np.uint64) for n, a in template.items()}
        self._splitter = _Splitter(max((a.size for a in template.values()), default=0))
        self.total_weight = 0
        self.num_terms = 0

    def add(self, update: StateDict, weight: int) -> None:
        """Fold one update in.

        Args:
            update: Finite arrays with the template's names and shapes.
            weight: Positive whole number (examples, patients, or 1).

        Raises:
            UpdateError: A weighted value beyond `MAX_MAGNITUDE`, a weight below 1, too many terms.
                Nothing was added.
        """
        if weight < 1:
            raise UpdateError(f"Expected a weight >= 1, got {weight}.")
        if self.num_terms >= MAX_TERMS:
            raise UpdateError(f"Expected at most {MAX_TERMS} updates in one mean.")
        check_magnitude(update, weight)
        for name, array in update.items():
            high, low = self._high[name].reshape(-1), self._low[name].reshape(-1)
            self._splitter.add(array.reshape(-1), weight, high, low)
        self.total_weight += weight
        self.num_terms += 1

    def result(self) -> StateDict:
        """Return the mean in each array's own type; whole-number arrays are rounded.

        Raises:
            UpdateError: If nothing was added.
        """
        if not self.num_terms:
            raise UpdateError("Expected at least one update to average, got none.")
        return {name: self._mean(name, dtype) for name, dtype in self._types.items()}

    def total(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return `sum(w * u)` in float64; zeros if nothing was added."""
        totals = {}
        for name, counts in self._high.items():
            totals[name] = np.empty(counts.shape, dtype=np.float64)
            for block, total in self._totals(name):
                totals[name].reshape(-1)[block] = total
        return totals

    def _totals(self, name: str) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Yield the sum of one array, flat, block by block."""
        high, low = self._high[name].reshape(-1), self._low[name].reshape(-1)
        for start in range(0, high.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            # One integer to float64 conversion each and one addition: the same for any order.
            total: npt.NDArray[np.float64]
            total = self._counted(high[block], _HIGH_OFFSET) * np.float64(2.0**-_HIGH_BITS)
            total += self._counted(low[block], _LOW_OFFSET) * 2.0**-_LOW_BITS
            yield block, total

    def _counted(self, sums: _Counts, offset: int) -> npt.NDArray[np.int64]:
        return (sums - np.uint64(self.num_terms * offset % 2**64)).view(np.int64)

    def _mean(self, name: str, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
        mean: npt.NDArray[np.generic] = np.empty(self._high[name].shape, dtype=dtype)
        for block, total in self._totals(name):
            total /= self.total_weight
            if not np.issubdtype(dtype, np.floating):
                np.rint(total, out=total)
            mean.reshape(-1)[block] = total
        return mean
