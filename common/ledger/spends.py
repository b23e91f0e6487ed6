"""`Spend`: one release, as a ledger states it; refused when its values mean nothing."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from medfed.common.accounting import GaussianEvent, Mechanism

Unit = Literal["patient", "record", "site", "none"]
Noise = Literal["secure", "seeded", "none"]
Kind = Literal["training", "words", "statistics"]


@dataclass(frozen=True, kw_only=True)
class Spend:
    """One release of this site, as the ledger states it: a round's training, words or statistics.

    Words and statistics have round_number 0, images_per_patient 0, sample_rate 1.0 and one step:
    one Gaussian release of all patients (client/words.py, client/statistics.py).

    Attributes:
        release: Names the release: study, run, round and the weights that training started from.
            With seeded noise the same name gives the same bits, so it is charged once.
        study: Digest of the study as the site saw it.
        run: The run's identifier.
        round_number: 1-based federated round.
        unit: Unit of privacy: patient, record or site; none for training without privacy.
        images_per_patient: K, the most images of a patient in one step.
        noise_multiplier: Noise standard deviation over max_grad_norm; 0 without noise.
        sample_rate: Public Poisson rate of a unit.
        steps: Optimiser steps, each one Gaussian release.
        max_grad_norm: L2 bound on a unit's gradient; on a patient's weights of words; on what
            a patient changes in statistics; on a site's update.
        noise: secure (operating system's generator), seeded (simulation; not private), or none
            (without privacy; or, with unit site, added by others than who keeps this ledger).
        kind: training, words or statistics.
        extra_delta: Part of delta that the release costs besides its noise; 0 for training.
        mechanism: gaussian; discrete_gaussian where all sites' noise together makes a sum private.

    Raises:
        ValueError: A value that means nothing, or that contradicts another.
    """

    release: str
    study: str
    run: str
    round_number: int
    unit: Unit
    images_per_patient: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    noise: Noise
    kind: Kind = "training"
    extra_delta: float = 0.0
    mechanism: Mechanism = "gaussian"

    def __post_init__(self) -> None:
        for name in ("release", "study", "run"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"Expected text as {name}, got {getattr(self, name)!r}.")
        _check_among("unit", self.unit, get_args(Unit))
        _check_among("noise", self.noise, get_args(Noise))
        _check_among("kind", self.kind, get_args(Kind))
        _check_among("mechanism", self.mechanism, get_args(Mechanism))
        for name in ("round_number", "images_per_patient", "steps"):
            _check_count(name, getattr(self, name))
        for name in ("noise_multiplier", "sample_rate", "max_grad_norm", "extra_delta"):
            _check_amount(name, getattr(self, name))
        if self.sample_rate > 1 or self.extra_delta > 1:
            raise ValueError("Expected sample_rate and extra_delta of at most 1.")
        if self.unit == "none" and self.noise != "none":
            raise ValueError(f'Expected noise "none" with unit "none", got "{self.noise}".')
        if self.noise == "none" and self.unit not in ("none", "site"):
            raise ValueError(f'Expected noise with unit "{self.unit}", got noise "none".')
        _ = self.event  # the accountant refuses what it cannot count

    @property
    def event(self) -> GaussianEvent | None:
        """What the accountant counts; None without privacy: no finite epsilon covers that."""
        if self.unit == "none":
            return None
        return GaussianEvent(
            self.noise_multiplier, self.sample_rate, self.steps, self.extra_delta, self.mechanism
        )


def _check_among(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Expected {name} to be {', '.join(allowed)}, got {value!r}.")


def _check_count(name: str, value: object) -> None:
    # True is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"Expected {name} to be a whole number >= 0, got {value!r}.")


def _check_amount(name: str, value: object) -> None:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError(f"Expected {name} to be a finite number >= 0, got {value!r}.")
