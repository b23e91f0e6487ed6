"""Composition of privacy loss distributions: what all releases together cost.

Losses of independent releases add up, so their distributions convolve. n equal releases are the
n-th power of one's spectrum; what lies outside the window that holds all but TAIL of the mass
(Chernoff) counts as infinite loss. Kept between calls: the spectra of single releases and of every
kind that did not grow. A decision of the gate then computes anew only the kind that did.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, rfft

from medfed.common.accounting.events import GaussianEvent
from medfed.common.accounting.losses import (
    MAX_POINTS,
    ORDERS,
    Direction,
    Floats,
    Losses,
    Release,
    coarser,
    epsilon_of,
    highest_loss,
    interval_of,
    log_moments,
    one_release,
)

Spectrum = npt.NDArray[np.complex128]

TAIL = 1e-15
"""Mass outside each end of a window."""
_ROUND_OFF = 1e-15  # mass that a Fourier transform may mislay, a release; seen: 0.4 of it
HIGHEST = 500.0
"""Losses that reach beyond are not for this module: exp(loss) leaves the range of floats."""


def loss_epsilon(events: tuple[GaussianEvent, ...], delta: float) -> tuple[float, float]:
    """Return the epsilon of `events` at `delta`, and the smallest delta at which it means much.

    Infinite if losses go beyond HIGHEST, or if delta is smaller than what was cut off.
    """
    kinds = _merge_unsampled(events)
    symmetric = all(event.sample_rate == 1 for event in kinds)
    directions: tuple[Direction, ...] = ("remove",) if symmetric else ("remove", "add")
    worst = resolved = 0.0
    for direction in directions:
        losses = _compose(kinds, direction)
        if losses is None:
            return math.inf, math.inf
        worst = max(worst, epsilon_of(losses, delta))
        resolved = max(resolved, losses.infinite)
    return worst, resolved


def _merge_unsampled(events: tuple[GaussianEvent, ...]) -> tuple[GaussianEvent, ...]:
    """Replace the Gaussian releases over all units by the one that they are together, exactly."""
    sampled = [event for event in events if event.sample_rate < 1]
    whole = [event for event in events if event.sample_rate == 1]
    if whole:
        precision = math.fsum(
            e.steps * (e.records_per_unit / e.noise_multiplier) ** 2 for e in whole
        )
        sampled.append(GaussianEvent(1 / math.sqrt(precision), 1.0, 1))
    return tuple(sampled)


def _compose(kinds: tuple[GaussianEvent, ...], direction: Direction) -> Losses | None:
    composed = [_self_compose(event, direction) for event in kinds]
    known = [losses for losses in composed if losses is not None]
    if len(known) < len(composed):
        return None
    if len(known) == 1:
        return known[0]
    interval = max(losses.interval for losses in known)
    low, high = _window(
        np.sum(
            [
                _moments(event, direction, losses.interval)
                for event, losses in zip(kinds, known, strict=True)
            ],
            axis=0,
        )
    )
    low, high = low - interval * len(known), high + interval * len(known)  # moved to its grid
    if high > HIGHEST:
        return None
    interval, num_points = _fit(low, high, interval)
    spectra = [_kind_spectrum(event, direction, interval, num_points) for event in kinds]
    circle = irfft(np.prod([spectrum for spectrum, _ in spectra], axis=0), num_points)
    return _cut(
        circle,
        interval,
        lowest=sum(lowest for _, lowest in spectra),
        low=low,
        infinite=-math.expm1(sum(math.log1p(-losses.infinite) for losses in known))
        + len(known) * _ROUND_OFF,
    )


@lru_cache(maxsize=128)
def _self_compose(event: GaussianEvent, direction: Direction) -> Losses | None:
    """Return the losses of all steps of `event` together; None if they go beyond HIGHEST."""
    release, steps = _release(event), event.steps
    if highest_loss(release) > HIGHEST:
        return None
    interval = interval_of(release)
    if steps == 1:
        return one_release(release, direction, interval)
    low, high = _window(_moments(event, direction, interval))
    if high > HIGHEST:
        return None
    interval, num_points = _fit(low, high, interval)
    one = one_release(release, direction, interval)
    power = np.exp(steps * _log_spectrum(release, direction, interval, num_points))
    return _cut(
        irfft(power, num_points),
        interval,
        lowest=steps * one.lowest,
        low=low,
        infinite=-math.expm1(steps * math.log1p(-one.infinite)) + steps * _ROUND_OFF,
    )


def _moments(event: GaussianEvent, direction: Direction, interval: float) -> Floats:
    return event.steps * log_moments(_release(event), direction, interval)


def _release(event: GaussianEvent) -> Release:
    return Release(event.noise_multiplier, event.sample_rate, event.records_per_unit)


def _window(moments: Floats) -> tuple[float, float]:
    """Return two losses beyond which at most TAIL of the mass lies, each (Chernoff)."""
    bounds = (moments - math.log(TAIL)) / ORDERS
    return float(np.max(bounds[ORDERS < 0])), float(np.min(bounds[ORDERS > 0]))


def _fit(low: float, high: float, interval: float) -> tuple[float, int]:
    """Return an interval and a number of points, a power of 2, that hold the window."""
    while (high - low) / interval > MAX_POINTS - 2:
        interval *= 2
    return interval, 1 << math.ceil((high - low) / interval + 1).bit_length()


def _cut(circle: Floats, interval: float, *, lowest: int, low: float, infinite: float) -> Losses:
    """Unroll a circular convolution, whose first point is `lowest`, to begin at `low`.

    What lay outside the window has come round to somewhere within it, on top of the 2 TAIL that
    are counted as infinite for it: too much, never too little.
    """
    first = math.floor(low / interval)
    masses = np.maximum(np.roll(circle, lowest - first), 0.0)
    return Losses(interval, first, masses, infinite + 2 * TAIL)


@lru_cache(maxsize=32)
def _log_spectrum(
    release: Release, direction: Direction, interval: float, num_points: int
) -> Spectrum:
    spectrum = rfft(_fold(one_release(release, direction, interval).masses, num_points))
    with np.errstate(divide="ignore"):
        logs: Spectrum = np.log(spectrum)
    return logs


@lru_cache(maxsize=128)
def _kind_spectrum(
    event: GaussianEvent, direction: Direction, interval: float, num_points: int
) -> tuple[Spectrum, int]:
    """Return the spectrum of all steps of `event` on the common grid, and its lowest point."""
    losses = _self_compose(event, direction)
    assert losses is not None
    moved = coarser(losses, interval)
    spectrum: Spectrum = rfft(_fold(moved.masses, num_points))
    return spectrum, moved.lowest


def _fold(masses: Floats, num_points: int) -> Floats:
    """Lay `masses` round a circle of `num_points`."""
    rounds = -(-len(masses) // num_points)
    padded = np.pad(masses, (0, rounds * num_points - len(masses)))
    folded: Floats = padded.reshape(rounds, num_points).sum(axis=0)
    return folded
