"""The mechanism part: canaries through the installed trainer, at the study's own settings."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from medfed.common.study import PrivacySection, StudyConfig
from medfed.simulations.auditing.attack_checks import Scores, check_attacks
from medfed.simulations.auditing.clipping_checks import check_clipping
from medfed.simulations.auditing.findings import Figure, Finding, PartResult, Status
from medfed.simulations.auditing.masked_checks import check_masks
from medfed.simulations.auditing.mechanism_figures import (
    DRAWS_CAPTION,
    NOISE_CAPTION,
    bells,
    bins,
    piles,
)
from medfed.simulations.auditing.noise_checks import PART, check_noise
from medfed.simulations.auditing.probe import Setting
from medfed.simulations.auditing.sampling_checks import NUM_PATIENTS, check_sampling
from medfed.simulations.auditing.site_mechanism import audit_shared_noise, audit_site_level
from medfed.simulations.auditing.site_probe import SiteSetting

_BUILT_IN_STEPS = 60


def audit_mechanism(study: StudyConfig | None, *, seed: int) -> PartResult:
    """Check noise, clipping, sampling and divisor where they are made, and attack the result.

    That is the installed trainer, where sites add the noise by themselves; the installed server,
    or the sites' side of secure aggregation, where whole sites are hidden.

    Args:
        study: Whose settings are claimed; None for a small built-in one.
        seed: Of canaries and of seeded noise. Secure noise is new at every audit.
    """
    before = torch.get_num_threads()
    # Thousands of tiny operations: a second thread only waits, and beside other work costs tenfold.
    torch.set_num_threads(1)
    try:
        return _audit(study, seed)
    finally:
        torch.set_num_threads(before)


def _audit(study: StudyConfig | None, seed: int) -> PartResult:
    if study is None:
        return _of_training(Setting(PrivacySection(), seed), _BUILT_IN_STEPS, built_in=True)
    privacy, secure = study.privacy, study.secure_aggregation
    sites = SiteSetting(privacy, study.federation.fraction, secure, seed)
    masks = tuple(check_masks(sites)) if secure.enabled else ()
    if privacy.at_sites:
        steps = _BUILT_IN_STEPS
        if study.training.local_steps is not None:
            steps = study.training.rounds * study.training.local_steps
        result = _of_training(Setting(privacy, seed), steps, built_in=False)
        return replace(result, findings=(*result.findings, *masks))
    if privacy.unit == "site":
        return audit_shared_noise(sites, masks) if secure.enabled else audit_site_level(sites)
    if masks:
        about = Finding(
            PART,
            "what was audited",
            Status.NOTE,
            "Secure aggregation as it is installed here, without differential privacy: no noise is "
            "added by anyone, so there is none to check.",
        )
        return PartResult(PART, (about, *masks))
    return PartResult(
        PART,
        skipped='The study has privacy.unit = "none": nobody adds noise, so there is no mechanism '
        "to audit.",
    )


def _of_training(setting: Setting, steps: int, *, built_in: bool) -> PartResult:
    findings: list[Finding] = [_about(setting, built_in=built_in)]
    noises, counts = {}, {}
    for seeded in (False, True):
        source = "seeded" if seeded else "secure"
        found, noises[source] = check_noise(setting, seeded=seeded)
        findings += found
        found, counts[source] = check_sampling(setting, seeded=seeded)
        findings += found
    findings += check_clipping(setting)
    for finding in check_clipping(replace(setting, by_books=False)):
        findings.append(replace(finding, check=f"{finding.check} (networks of other packages)"))
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
        Figure(NOISE_CAPTION, bells(noise)),
        Figure(DRAWS_CAPTION, bins(counts, NUM_PATIENTS, setting.privacy.sample_rate)),
        Figure(
            "One-run attack: how often each canary seems to have been counted. The more the two "
            "piles overlap, the less an attacker learns.",
            piles(scores.values, scores.present),
        ),
    )
