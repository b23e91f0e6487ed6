"""What a training would cost before there is one: unit, sampling, noise and steps to epsilon.

A step is one noisy sum of clipped gradients. Whose gradients are clipped and drawn, each alone, is
the `sampling`; whose contribution the epsilon covers is the `unit`. They differ in one case that
makes sense: images are drawn, and a patient is to be covered. Then up to `images_per_patient`
gradients of one patient enter a step, and all may point the same way (a mixture of Gaussians).

Reference: Choquette-Choo et al. 2023, https://arxiv.org/abs/2310.15526.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from medfed.common.accounting import GaussianEvent, epsilon, renyi_epsilon

Unit = Literal["patient", "record", "site"]
Accountant = Callable[[GaussianEvent, float], float]

MAX_NOISE_MULTIPLIER = 1000.0
"""Most that a study takes, and the most that `smallest_noise` tries."""
_NOISE_DECIMALS = 10_000

_COVERED = {
    "patient": "one patient with all their images",
    "record": "one image",
    "site": "one site with all its patients",
}
_NOT_COVERED = {
    "patient": "The site as a whole, and what is common to many patients.",
    "record": "A patient with several images: ask with --unit patient --sampling record.",
    "site": "Anything against whoever adds the noise: the server, if the noise is the server's.",
}


@dataclass(frozen=True, kw_only=True)
class PlannedTraining:
    """All steps of a training, as far as epsilon depends on them.

    Attributes:
        noise_multiplier: Noise standard deviation over the clipping bound.
        sample_rate: Probability with which each of what `sampling` says enters a step, alone.
        steps: Noisy sums over all rounds; with unit site, one a round.
        unit: Whose contribution the epsilon covers.
        sampling: What is drawn and clipped: patients, records (images) or sites.
        images_per_patient: With unit patient and sampling record: most images that a patient
            has. Otherwise epsilon does not depend on it.

    Raises:
        ValueError: The unit does not go with the sampling, or a number is out of range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: Unit = "patient"
    sampling: Unit = "patient"
    images_per_patient: int = 1

    def __post_init__(self) -> None:
        if self.unit == "record" and self.sampling == "patient":
            raise ValueError(
                "No record's epsilon is stated where patients are drawn: adding or removing one "
                "image replaces the patient's gradient, which moves the sum by up to twice the "
                "clipping bound. Ask for the patient's, or set the sampling to record."
            )
        if (self.unit == "site") != (self.sampling == "site"):
            raise ValueError(
                f"Expected sampling site with unit site and only there, got unit {self.unit} with "
                f"sampling {self.sampling}. Leave the sampling out: it follows the unit."
            )
        _ = self.event  # it checks the numbers

    @property
    def event(self) -> GaussianEvent:
        """What the accountant counts: all steps, for one unit."""
        mixed = self.unit == "patient" and self.sampling == "record"
        return GaussianEvent(
            self.noise_multiplier,
            self.sample_rate,
            self.steps,
            records_per_unit=self.images_per_patient if mixed else 1,
        )

    @property
    def neighbouring_relation(self) -> str:
        """Which two data sets are told apart by no more than epsilon and delta say."""
        return f"add or remove {_COVERED[self.unit]}"

    @property
    def not_covered(self) -> str:
        """What a reader might take the epsilon to cover, and it does not."""
        return _NOT_COVERED[self.unit]

    @property
    def mechanism(self) -> str:
        """The mechanism's name."""
        if self.event.records_per_unit > 1:
            return "mixture of Gaussians"
        return "Gaussian" if self.sample_rate == 1 else "Poisson-sampled Gaussian"


def pld_epsilon(event: GaussianEvent, delta: float) -> float:
    """Return epsilon from the privacy loss distribution: what the gate and the ledger state."""
    return epsilon([event], delta)


def rdp_epsilon(event: GaussianEvent, delta: float) -> float:
    """Return the looser bound from Renyi divergences.

    Raises:
        ValueError: Several records of the unit are drawn: no tight Renyi divergence is known.
    """
    if event.records_per_unit > 1:
        raise ValueError(
            "Expected the pld accountant for a patient of whom several images are drawn: no tight "
            "Renyi divergence is known. Leave the accountant out."
        )
    return renyi_epsilon([event], delta)


def smallest_noise(
    training: PlannedTraining, target_epsilon: float, delta: float, accountant: Accountant
) -> float:
    """Return the smallest noise multiplier, to 4 decimals and rounded up, within the target.

    `accountant` states at most `target_epsilon` at the number returned; `training`'s own noise
    multiplier is not looked at.

    Raises:
        ValueError: Even MAX_NOISE_MULTIPLIER is not enough.
    """

    def fits(parts: int) -> bool:
        event = replace(training, noise_multiplier=parts / _NOISE_DECIMALS).event
        return accountant(event, delta) <= target_epsilon

    # Upwards first: little noise costs the accountant most.
    most = round(MAX_NOISE_MULTIPLIER * _NOISE_DECIMALS)
    high = _NOISE_DECIMALS
    while not fits(high):
        if high == most:
            raise ValueError(
                f"No noise multiplier up to {MAX_NOISE_MULTIPLIER:g} brings {training.steps} steps "
                f"at sample rate {training.sample_rate:g} to epsilon {target_epsilon:g} at delta "
                f"{delta:g}. Take fewer steps, a smaller rate, or a larger epsilon."
            )
        high = min(2 * high, most)
    low = high // 2 if high > _NOISE_DECIMALS else 0
    while high - low > 1:
        middle = math.ceil((low + high) / 2)
        if fits(middle):
            high = middle
        else:
            low = middle
    return high / _NOISE_DECIMALS
