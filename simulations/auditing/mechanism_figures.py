"""Figures of the mechanism part, as PNG."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medfed.simulations.reporting.drawing import INK, draw, new_figure, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 6.4, 3.0
NOISE_CAPTION = (
    "Noise as it was released, divided by what is claimed, and the normal distribution that it "
    "should follow."
)
DRAWS_CAPTION = (
    "How many of the canaries were drawn each time, and the binomial distribution that Poisson "
    "sampling makes."
)
Values = npt.NDArray[np.float64]


def bells(noise: Values) -> bytes:
    """Draw the noise, over its claimed deviation, with the normal density."""

    def plot() -> "Figure":
        figure, axes = new_figure(_WIDTH, _HEIGHT)
        axes.hist(noise, bins=80, range=(-4.5, 4.5), density=True, color=INK["sky"])
        x = np.linspace(-4.5, 4.5, 200)
        density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        axes.plot(x, density, color=INK["ink"], label="claimed")
        axes.set_xlabel("noise / claimed deviation")
        axes.set_ylabel("density")
        axes.legend()
        return figure

    return _png("noise", plot)


def bins(counts: Values, num_canaries: int, rate: float) -> bytes:
    """Draw how many canaries were drawn each time, with the binomial."""
    from scipy import stats

    def plot() -> "Figure":
        figure, axes = new_figure(_WIDTH, _HEIGHT)
        middle, spread = num_canaries * rate, 5 * np.sqrt(num_canaries * rate * (1 - rate)) + 2
        low = int(max(0, min(middle - spread, counts.min())))
        high = int(min(num_canaries, max(middle + spread, counts.max())))
        edges = np.arange(low, high + 2) - 0.5
        axes.hist(counts, bins=edges, density=True, color=INK["sky"], label="drawn")
        x = np.arange(low, high + 1)
        axes.plot(
            x, stats.binom(num_canaries, rate).pmf(x), color=INK["ink"], marker=".", label="claimed"
        )
        axes.set_xlabel(f"canaries drawn, of {num_canaries}")
        axes.set_ylabel("share of draws")
        whole_numbers(axes.xaxis)
        axes.legend()
        return figure

    return _png("sampling", plot)


def piles(values: Values, present: npt.NDArray[np.bool_]) -> bytes:
    """Draw the scores of absent and of present canaries."""

    def plot() -> "Figure":
        figure, axes = new_figure(_WIDTH, _HEIGHT)
        edges = np.linspace(values.min(), values.max(), 50).tolist()
        for own, name, colour in ((~present, "absent", "amber"), (present, "present", "blue")):
            axes.hist(
                values[own], bins=edges, alpha=0.55, color=INK[colour], label=name, density=True
            )
        axes.set_xlabel("times counted, as released")
        axes.set_ylabel("density")
        axes.legend()
        return figure

    return _png("scores", plot)


def _png(name: str, plot: "Callable[[], Figure]") -> bytes:
    drawing = draw(name, name, plot)
    assert drawing is not None  # `plot` always returns a figure
    return drawing.png
