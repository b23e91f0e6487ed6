"""What an attacker can prove who knows every canary: lower bounds on epsilon.

Half of the canaries, by a fair coin each, are among the patients; the attacker sees what is
released and guesses which. What the attacker gets right cannot be had below a certain epsilon.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfed.common.seeding import numpy_rng
from medfed.simulations.auditing.bounds import (
    gaussian_epsilon,
    gaussian_mu,
    one_run_epsilon,
    one_run_p,
)
from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.noise_checks import PART
from medfed.simulations.auditing.probe import Canary, Setting, canaries, release
from medfed.simulations.auditing.statistics import ALPHA
from medfed.simulations.auditing.verify_ledger import epsilon

_CANARIES = 1000
_GUESSES = 200
_MAX_STEPS = 60
_GAUSSIAN_STEPS = 2
# The bound's own delta term keeps p above about 2 m delta / r. A mechanism that is as claimed comes
# nowhere near: its worst epsilon is not met by a whole batch of guesses.
_ONE_RUN_ALPHA = 1e-3


@dataclass(frozen=True)
class Scores:
    """What the attacker saw of each canary, and the truth.

    Attributes:
        values: How often each canary seems to have been counted.
        present: Whether it was among the patients.
    """

    values: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]


def check_attacks(setting: Setting, num_steps: int) -> tuple[list[Finding], Scores]:
    """Return the bounds beside the claims, and the scores of the one-run attack.

    Args:
        setting: What is claimed.
        num_steps: Steps of the whole study.
    """
    steps = min(num_steps, _MAX_STEPS)
    scores = _attack(setting, steps, "one run")
    return [_one_run(setting, scores, steps), _gaussian(setting)], scores


def _attack(setting: Setting, steps: int, name: str) -> Scores:
    present = numpy_rng(setting.seed, "audit coins", name).random(_CANARIES) < 0.5
    data = canaries([Canary((int(pixel),)) for pixel in np.flatnonzero(present)])
    return Scores(release(setting, data, steps=steps, site=name)[:_CANARIES], present)


def _claimed(setting: Setting, rate: float, steps: int) -> float:
    privacy = setting.privacy
    event = {
        "unit": privacy.unit,
        "noise_multiplier": privacy.noise_multiplier,
        "sample_rate": rate,
        "steps": steps,
        "extra_delta": 0.0,
    }
    return epsilon([event], privacy.target_delta)


def _one_run(setting: Setting, scores: Scores, steps: int) -> Finding:
    delta = setting.privacy.target_delta
    claimed = _claimed(setting, setting.privacy.sample_rate, steps)
    order = np.argsort(scores.values)
    half = _GUESSES // 2
    right = int(scores.present[order[-half:]].sum() + (~scores.present[order[:half]]).sum())
    seen = {"canaries": _CANARIES, "guesses": _GUESSES, "right": right}
    bound = one_run_epsilon(**seen, delta=delta)
    p = one_run_p(**seen, epsilon=claimed, delta=delta)
    return Finding(
        PART,
        "one-run bound",
        Status.PASS if p >= _ONE_RUN_ALPHA else Status.FAIL,
        f"{right} of {_GUESSES} guesses about {_CANARIES} canaries were right: epsilon of these "
        f"{steps} steps is at least {bound:.3f} (95 % confidence), claimed {claimed:.3f}. The best "
        "that this method could ever show here is "
        f"{one_run_epsilon(**{**seen, 'right': _GUESSES}, delta=delta):.2f}. A bound below the "
        "claim proves nothing; one above it refutes the claim.",
        {**seen, "steps": steps, "bound": bound, "claimed": claimed, "p_value": p},
    )


def _gaussian(setting: Setting) -> Finding:
    """At a rate of 1 the mechanism is Gaussian exactly, so the bound is nearly tight."""
    everyone = setting.with_privacy(sample_rate=1.0)
    scores = _attack(everyone, _GAUSSIAN_STEPS, "gaussian")
    mu = math.sqrt(_GAUSSIAN_STEPS) / setting.privacy.noise_multiplier
    delta = setting.privacy.target_delta
    return gaussian_bound(scores, steps=_GAUSSIAN_STEPS, claimed_mu=mu, delta=delta)


def gaussian_bound(scores: Scores, *, steps: int, claimed_mu: float, delta: float) -> Finding:
    """Return the bound that an attacker proves on `steps` releases which are mu-GDP together.

    Args:
        scores: How much of each canary was seen in all: about `steps` if present, 0 if not.
        steps: Releases, with everyone in each.
        claimed_mu: mu of all of them.
        delta: At which epsilon is stated.
    """
    guessed = scores.values > steps / 2  # set before looking
    seen = {
        "false_alarms": int((guessed & ~scores.present).sum()),
        "outs": int((~scores.present).sum()),
        "misses": int((~guessed & scores.present).sum()),
        "ins": int(scores.present.sum()),
    }
    refuting = gaussian_mu(**seen, confidence=1 - ALPHA)
    bound = gaussian_epsilon(gaussian_mu(**seen), delta)
    claimed = gaussian_epsilon(claimed_mu, delta)
    return Finding(
        PART,
        "Gaussian bound",
        Status.PASS if refuting <= claimed_mu else Status.FAIL,
        f"With everyone in each of {steps} releases, {seen['false_alarms']} of "
        f"{seen['outs']} absent canaries were taken for present and {seen['misses']} of "
        f"{seen['ins']} present ones for absent: epsilon of that is at least {bound:.3f} "
        f"(95 % confidence), claimed {claimed:.3f}.",
        {**seen, "steps": steps, "bound": bound, "claimed": claimed},
    )
