"""The mechanism part where whole sites are hidden: who adds the noise is audited, as installed."""

from collections.abc import Sequence

from medfed.simulations.auditing.findings import Figure, Finding, PartResult, Status
from medfed.simulations.auditing.masked_checks import (
    check_shared_noise,
    check_shared_sensitivity,
    infeasible,
    num_sites,
)
from medfed.simulations.auditing.mechanism_figures import (
    DRAWS_CAPTION,
    NOISE_CAPTION,
    bells,
    bins,
    piles,
)
from medfed.simulations.auditing.noise_checks import PART
from medfed.simulations.auditing.site_level_checks import (
    NUM_SITES,
    check_site_attack,
    check_site_draws,
    check_site_noise,
    check_site_sensitivity,
)
from medfed.simulations.auditing.site_probe import SiteSetting


def audit_site_level(setting: SiteSetting) -> PartResult:
    """Check the server that adds the noise, and attack what it releases."""
    findings: list[Finding] = [_about(setting, "The server that is installed here")]
    noises, counts = {}, {}
    for seeded in (False, True):
        found, noises[seeded] = check_site_noise(setting, seeded=seeded)
        findings += found
        found, counts[seeded] = check_site_draws(setting, seeded=seeded)
        findings += found
    findings += check_site_sensitivity(setting)
    bound, scores = check_site_attack(setting)
    figures = [Figure(NOISE_CAPTION, bells(noises[False]))]
    if setting.fraction < 1:
        figures.append(Figure(DRAWS_CAPTION, bins(counts[False], NUM_SITES, setting.fraction)))
    caption = (
        "Attack: how much of each canary site's update seems to be in the sum. The more the two "
        "piles overlap, the less an attacker learns."
    )
    figures.append(Figure(caption, piles(scores.values, scores.present)))
    return PartResult(PART, (*findings, bound), figures=tuple(figures))


def audit_shared_noise(setting: SiteSetting, masks: Sequence[Finding]) -> PartResult:
    """Check the noise that all sites add together, in the worst case that the study allows.

    Args:
        setting: What is claimed.
        masks: What was found on secure aggregation itself.
    """
    who = f"Sites and server as they are installed here, {num_sites(setting)} sites a round"
    about = _about(setting, who)
    why = infeasible(setting)
    if why:
        note = Finding(PART, "stated noise in the worst case", Status.NOTE, why)
        return PartResult(PART, (about, note, *masks))
    findings: list[Finding] = [about]
    noises = {}
    for seeded in (False, True):
        found, noises[seeded] = check_shared_noise(setting, seeded=seeded)
        findings += found
    findings += [*check_shared_sensitivity(setting), *masks]
    figure = Figure(NOISE_CAPTION, bells(noises[False]))
    return PartResult(PART, tuple(findings), figures=(figure,))


def _about(setting: SiteSetting, who: str) -> Finding:
    privacy = setting.privacy
    bound = "bound" if privacy.site.adaptive_quantile is None else "first bound"
    return Finding(
        PART,
        "what was audited",
        Status.NOTE,
        f"{who}, at the study's own settings: unit site, noise multiplier "
        f"{privacy.noise_multiplier:g}, {bound} {setting.bound:g}, "
        f"{setting.divisor:g} expected sites. It shows what this installation does, not what was "
        "run elsewhere.",
        {
            "noise_multiplier": privacy.noise_multiplier,
            "fraction": setting.fraction,
            "max_update_norm": setting.bound,
            "expected_sites": setting.divisor,
            "target_delta": privacy.target_delta,
        },
    )
