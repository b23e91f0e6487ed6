"""Can one patient, whoever they are, change the clipped sum by more than max_grad_norm?

Training runs twice with the same seeded noise, with and without a patient who tries to count for
more; the difference of the two releases is that patient's whole influence, exactly. The patient
comes last in the site's order, so that all others' draws are the same.
"""

from dataclasses import dataclass

import numpy as np

from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.noise_checks import PART
from medfed.simulations.auditing.probe import SIZE, Canary, Setting, canaries, release
from medfed.simulations.auditing.sampling_checks import LOW_NOISE

_OTHERS = 21  # more than one chunk of 16
_ROUNDS = 3
_TOLERANCE = 1e-3  # float32, and the thousandth that automatic clipping stays below


@dataclass(frozen=True)
class _Attempt:
    """A patient who tries to count for more than one.

    Attributes:
        name: What the check calls it.
        canary: The patient.
        counts: Whether the influence should be max_grad_norm itself; else at most that.
    """

    name: str
    canary: Canary
    counts: bool = True


def check_clipping(setting: Setting) -> list[Finding]:
    """Return the findings on removal sensitivity and on the divisor."""
    findings = [_sensitivity(setting, attempt) for attempt in _attempts(setting)]
    return [*findings, *_divisor(setting)]


def _attempts(setting: Setting) -> list[_Attempt]:
    last, limit = SIZE * SIZE - 1, setting.privacy.images_per_patient
    attempts = [
        _Attempt("one loud image", Canary((last,))),
        _Attempt("an image without a finite gradient", Canary((last,), broken=True), counts=False),
    ]
    if setting.privacy.unit == "patient":
        many = 3 * limit + 1
        attempts += [
            _Attempt(f"{many} loud images alike", Canary((last,) * many)),
            _Attempt(
                f"{many} loud images, all different",
                Canary(tuple(last - image for image in range(many))),
            ),
        ]
    return attempts


def _sensitivity(setting: Setting, attempt: _Attempt) -> Finding:
    everyone = setting.with_privacy(noise_multiplier=LOW_NOISE, sample_rate=1.0)
    others = [Canary((pixel,)) for pixel in range(_OTHERS)]
    with_patient, without = canaries([*others, attempt.canary]), canaries(others)
    sizes = []
    for number in range(_ROUNDS):
        difference = release(
            everyone, with_patient, round_number=number, site="pair", seeded=True
        ) - release(everyone, without, round_number=number, site="pair", seeded=True)
        sizes.append(float(np.linalg.norm(difference)))
    finite = bool(np.isfinite(sizes).all())
    worst = max(sizes) if finite else np.inf
    bounded = worst <= 1 + _TOLERANCE
    detail = (
        f"Removing a patient with {attempt.name} changes the sum by {worst:.4f} times "
        "max_grad_norm; at most 1 is allowed."
    )
    status = Status.PASS if bounded else Status.FAIL
    if bounded and attempt.counts and min(sizes) < 0.5:
        # Nothing was put at risk, so nothing was shown either.
        status, detail = Status.NOTE, detail + " It hardly counts, so this check shows little."
    return Finding(
        PART,
        f"removal sensitivity: {attempt.name}",
        status,
        detail,
        {"influence_over_max_grad_norm": worst if finite else "not finite"},
    )


def _divisor(setting: Setting) -> list[Finding]:
    """The divisor must be the public one, however many patients there are."""
    findings = []
    for public in (None, 1000):
        own = Setting(setting.privacy, setting.seed, public).with_privacy(
            noise_multiplier=LOW_NOISE, sample_rate=1.0
        )
        ratios = []
        for num_patients in (20, 60):
            data = canaries([Canary((pixel,)) for pixel in range(num_patients)])
            seen = np.stack(
                [release(own, data, round_number=n, site="divisor", seeded=True) for n in range(5)]
            )[:, :num_patients]
            ratios.append(1 / float(seen.mean()))
        right = all(abs(ratio - 1) < 0.06 for ratio in ratios)
        name = "expected_batch_size" if public is None else "public_num_patients"
        findings.append(
            Finding(
                PART,
                f"divisor ({name})",
                Status.PASS if right else Status.FAIL,
                f"With 20 patients the noisy sum is divided by {ratios[0]:.3f} times the public "
                f"number, with 60 by {ratios[1]:.3f} times; 1 is right both times. A divisor that "
                "follows the number of patients tells it.",
                {"with_20_patients": ratios[0], "with_60_patients": ratios[1]},
            )
        )
    return findings
