"""The policy gate: what the site allows, decided outside anything the server sends.

Plain functions of (study, policy, ledger). A no is a `SiteRefusal`: its reason code may leave, its
detail stays in the site's own log.
"""

from medfed.client.ledger import Ledger, Spend
from medfed.client.site import PolicySection, SiteConfig
from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal
from medfed.common.study import StudyConfig

# What each unit covers: a patient's privacy also covers each of their records.
_STRENGTH = {"none": 0, "record": 1, "patient": 2}


def check_study(study: StudyConfig, policy: PolicySection) -> None:
    """Refuse a study that asks for more than the site allows. Reads no data."""
    if _STRENGTH[study.privacy.unit] < _STRENGTH[policy.unit]:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f'The study\'s privacy.unit is "{study.privacy.unit}", this site requires '
            f'"{policy.unit}" or stronger.',
        )
    if study.privacy.images_per_patient > policy.max_images_per_patient:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f"The study takes up to {study.privacy.images_per_patient} images of a patient a step, "
            f"this site allows {policy.max_images_per_patient}.",
        )


def spend_of_round(
    study: StudyConfig, policy: PolicySection, *, run: str, round_number: int, release: str
) -> Spend:
    """Return what one round of `study` will have cost this site, before it starts."""
    privacy = study.privacy
    assert study.training.local_steps is not None  # StudyConfig requires it under DP
    return Spend(
        release=release,
        study=study.digest(),
        run=run,
        round_number=round_number,
        unit=privacy.unit,
        images_per_patient=privacy.images_per_patient,
        noise_multiplier=privacy.noise_multiplier,
        sample_rate=privacy.sample_rate,
        steps=study.training.local_steps,
        max_grad_norm=privacy.max_grad_norm,
        noise="seeded" if policy.allow_seeded_noise else "secure",
    )


def charge(site: SiteConfig, spend: Spend) -> float:
    """Write `spend` into the site's ledger if the budget allows, and return epsilon after it.

    Raises:
        SiteRefusal: BUDGET when epsilon after the round would exceed the policy's; LEDGER when
            the ledger cannot be trusted; POLICY when it holds spending at a weaker unit than
            this round's. Nothing was written.
    """
    policy = site.policy
    try:
        with Ledger(site.state_folder).locked() as ledger:
            spends = [entry.spend for entry in ledger.entries]
            _check_units(spend, spends)
            events = [earlier.event for earlier in spends]
            if _already_charged(spend, spends):
                return epsilon(events, policy.target_delta)
            after = epsilon([*events, spend.event], policy.target_delta)
            if not after <= policy.max_epsilon:  # so that NaN is refused too
                raise SiteRefusal(
                    RefusalReason.BUDGET,
                    f"Round {spend.round_number} would bring this data set's epsilon to "
                    f"{after:.3f} at delta {policy.target_delta:g}; the policy allows "
                    f"{policy.max_epsilon:g}.",
                )
            ledger.append(spend)
            return after
    except LedgerError as error:
        raise SiteRefusal(RefusalReason.LEDGER, str(error)) from error


def _check_units(spend: Spend, spends: list[Spend]) -> None:
    """Refuse to state an epsilon at a stronger unit than some of what it composes."""
    weaker = {s.unit for s in spends if _STRENGTH.get(s.unit, 0) < _STRENGTH[spend.unit]}
    if weaker:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f"This data set's ledger holds spending per {' and '.join(sorted(weaker))}, from which "
            f"no epsilon of a {spend.unit} follows. Keep to studies of that unit here.",
        )


def _already_charged(spend: Spend, spends: list[Spend]) -> bool:
    """Whether this very release was charged: only seeded noise gives the same bits again."""
    if spend.noise != "seeded":
        return False
    return spend in spends
