"""The mechanism part: canaries through the installed trainer, at the study's own settings."""

import numpy as np
import numpy.typing as npt

from medfed.common.study import PrivacySection, StudyConfig
from medfed.simulations.auditing.attack_checks import Scores, check_attacks
from medfed.simulations.auditing.clipping_checks import check_clipping
from medfed.simulations.auditing.findings import Figure, Finding, PartResult, Status
from medfed.simulations.auditing.mechanism_figures import bells, bins, piles
from medfed.simulations.auditing.noise_checks import PART, check_noise
from medfed.simulations.auditing.probe import Setting
from medfed.simulations.auditing.sampling_checks import check_sampling

_BUILT_IN_STEPS = 60


def audit_mechanism(study: StudyConfig | None, *, seed: int) -> PartResult:
    """Check noise, clipping, sampling and divisor of the installed trainer, and attack it.

    Args:
        study: Whose settings are claimed; None for a small built-in one.
        seed: Of canaries and of seeded noise. Secure noise is new at every audit.
    """
    if study is not None and not study.privacy.at_sites:
        return PartResult(
            PART,
            skipped=f'The study has privacy.unit = "{study.privacy.unit}": no site trains with '
            "noise of its own, so there is no mechanism at the sites to audit.",
        )
    privacy = PrivacySection() if study is None else study.privacy
    steps = _BUILT_IN_STEPS
    if study is not None and study.training.local_steps is not None:
        steps = study.training.rounds * study.training.local_steps
    setting = Setting(privacy, seed)
    findings: list[Finding] = [_about(setting, built_in=study is None)]
    noises, counts = {}, {}
    for seeded in (False, True):
        source = "seeded" if seeded else "secure"
        found, noises[source] = check_noise(setting, seeded=seeded)
        findings += found
        found, counts[source] = check_sampling(setting, seeded=seeded)
        findings += found
    findings += check_clipping(setting)
    found, scores = check_attacks(setting, steps)
    findings += found
    figures = _figures(setting, noises["secure"], counts["secure"], scores)
    return PartResult(PART, tuple(findings), figures=figures)


def _about(setting: Setting, *, built_in: bool) -> Finding:
    privacy = setting.privacy
    origin = "a built-in setting" if built_in else "the study's own settings"
    return Finding(
        PART,
        "what was audited",
        Status.NOTE,
        f"The trainer that is installed here, at {origin}: unit {privacy.unit}, noise multiplier "
        f"{privacy.noise_multiplier:g}, rate {privacy.sample_rate:g}, {privacy.clipping} clipping. "
        "It shows what this installation does, not what a hospital's did.",
        {
            "noise_multiplier": privacy.noise_multiplier,
            "sample_rate": privacy.sample_rate,
            "max_grad_norm": privacy.max_grad_norm,
            "target_delta": privacy.target_delta,
        },
    )


def _figures(
    setting: Setting,
    noise: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    scores: Scores,
) -> tuple[Figure, ...]:
    return (
        Figure(
            "Noise as it was released, divided by what is claimed, and the normal distribution "
            "that it should follow.",
            bells(noise),
        ),
        Figure(
            "How many of the canaries were drawn at a step, and the binomial distribution that "
            "Poisson sampling makes.",
            bins(counts, setting.privacy.sample_rate),
        ),
        Figure(
            "One-run attack: how often each canary seems to have been counted. The more the two "
            "piles overlap, the less an attacker learns.",
            piles(scores.values, scores.present),
        ),
    )
