"""The policy gate: what the site allows, decided outside anything the server sends.

Plain functions of (study, policy, ledger). A no is a `SiteRefusal`: its reason code may leave, its
detail stays in the site's own log.
"""

import math
from typing import Literal

from medfed.client.site import PolicySection, SiteConfig
from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal
from medfed.common.ledger import Ledger, Spend
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


def check_words(study: StudyConfig, policy: PolicySection) -> None:
    """Refuse a study that asks for more words than the site lets out. Reads no report."""
    report = study.task.report
    if study.task.type != "report" or report.vocabulary:
        raise SiteRefusal(
            RefusalReason.STUDY,
            "Asked for words of reports by a study that needs none: it is not about reports, or "
            "its vocabulary is public.",
        )
    if policy.release_words == "never":
        raise SiteRefusal(
            RefusalReason.POLICY,
            'This site\'s policy.release_words is "never". It can take part in studies with a '
            "public vocabulary.",
        )
    if report.words_noise_multiplier is None and policy.release_words != "threshold":
        raise SiteRefusal(
            RefusalReason.POLICY,
            "The study asks for words without noise (no task.report.words_noise_multiplier), this "
            f'site\'s policy.release_words is "{policy.release_words}".',
        )
    if report.min_patients < policy.min_patients_per_word:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f"The study asks for words of {report.min_patients} or more patients, this site names "
            f"words of {policy.min_patients_per_word} or more.",
        )


def spend_of_words(study: StudyConfig, policy: PolicySection, *, run: str, release: str) -> Spend:
    """Return what naming words with noise will have cost this site, before it does.

    A patient's words are one Gaussian release at the study's noise. Where the study counts
    records, adding or removing one of a patient's records replaces the patient's words by others:
    two vectors of norm 1 without negative parts lie at most sqrt(2) apart.
    """
    noise_multiplier = study.task.report.words_noise_multiplier
    if noise_multiplier is None:
        raise ValueError("Expected task.report.words_noise_multiplier, got none.")
    per_record = study.privacy.unit == "record"
    return Spend(
        release=release,
        study=study.digest(),
        run=run,
        round_number=0,
        unit="record" if per_record else "patient",
        images_per_patient=0,
        noise_multiplier=noise_multiplier / math.sqrt(2) if per_record else noise_multiplier,
        sample_rate=1.0,
        steps=1,
        max_grad_norm=1.0,
        noise=_noise(policy),
        kind="words",
        extra_delta=study.task.report.words_delta,
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
        noise=_noise(policy),
    )


def charge(site: SiteConfig, spend: Spend) -> float:
    """Write `spend` into the site's ledger if the budget allows, and return epsilon after it.

    Raises:
        SiteRefusal: BUDGET when epsilon after the release would exceed the policy's; LEDGER when
            the ledger cannot be trusted; POLICY when it holds spending at a weaker unit than
            this release's. Nothing was written.
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
                raise _over_budget(spend, spends, after, policy)
            ledger.append(spend)
            return after
    except LedgerError as error:
        raise SiteRefusal(RefusalReason.LEDGER, str(error)) from error


def _noise(policy: PolicySection) -> Literal["secure", "seeded"]:
    return "seeded" if policy.allow_seeded_noise else "secure"


def _over_budget(
    spend: Spend, spends: list[Spend], after: float, policy: PolicySection
) -> SiteRefusal:
    what = "Naming words" if spend.kind == "words" else f"Round {spend.round_number}"
    extra = math.fsum(s.extra_delta for s in [*spends, spend])
    words = f" (of which choosing words takes {extra:g})" if extra else ""
    return SiteRefusal(
        RefusalReason.BUDGET,
        f"{what} would bring this data set's epsilon to {after:.3f} at delta "
        f"{policy.target_delta:g}{words}; the policy allows {policy.max_epsilon:g}.",
    )


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
