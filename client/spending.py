"""What a release costs this site's data set, and the charge: written down before it begins.

One ledger has one unit. Epsilons of different units do not add up: removing one record of a
patient moves a patient's clipped gradient by up to twice its bound, so a record's epsilon that
counts rounds per patient would be too small; and a patient's does not follow from rounds per record
at all.

What stands in the ledger, by who adds the noise:

- patient, record: this site, in training, in choosing words or in its statistics. It vouches for
  every value.
- site, by the server: noise "none". The site trains without noise and can vouch only for taking
  part; noise_multiplier is the study's word for what the server adds, so the epsilon holds if the
  server is honest, and against whoever sees the models alone. sample_rate is 1 whatever the
  server's draw: a site that is asked knows that it was drawn, and is charged for just these rounds.
- site, by all sites (discrete_gaussian): this site adds its share and vouches for that; the sum is
  as private as stated if the study's honest_sites are.
- none: no noise. No epsilon covers such a release; it is written so that none can be claimed later.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal, Protocol

from medfed.client.site import PolicySection, SiteConfig
from medfed.common.accounting import epsilon
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal
from medfed.common.ledger import GENESIS, Ledger, LockedLedger, Spend, Summary
from medfed.common.statistics import sensitivity
from medfed.common.study import StudyConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Charge:
    """What the ledger says once a release is written into it.

    Attributes:
        epsilon: Of all that the data set spent, this release included; None for a release
            without privacy.
        head: Hash of the ledger's last entry.
    """

    epsilon: float | None
    head: str


class WriteAhead(Protocol):
    """What is known on disk of one request's charge (`client.replies`)."""

    @property
    def head_before(self) -> str | None:
        """The ledger's head before this request's charge, if nothing of it has left yet."""
        ...

    def intend(self, head: str) -> None:
        """Write down that the request is about to be charged after `head`."""
        ...


def spend_of_words(study: StudyConfig, policy: PolicySection, *, run: str, release: str) -> Spend:
    """Return what naming words will have cost this site, before it does.

    A patient's words are one Gaussian release at the study's noise. Where the study counts
    records, adding or removing one of a patient's records replaces the patient's words by others:
    two vectors of norm 1 without negative parts lie at most sqrt(2) apart. Words chosen without
    noise have no privacy.
    """
    noise_multiplier = study.task.report.words_noise_multiplier
    if noise_multiplier is None:
        return _without_privacy(study, run, round_number=0, release=release, kind="words")
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


def spend_of_statistics(
    study: StudyConfig, policy: PolicySection, *, run: str, release: str
) -> Spend:
    """Return what statistics of the training data will have cost this site, before they do.

    One Gaussian release of the study's noise per patient; per record as in `spend_of_words`, for
    the same reason (client/privacy/statistics.py). Statistics without noise have no privacy.
    """
    noise_multiplier = study.statistics.noise_multiplier
    if noise_multiplier is None:
        return _without_privacy(study, run, round_number=0, release=release, kind="statistics")
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
        max_grad_norm=sensitivity(study),
        noise=_noise(policy),
        kind="statistics",
    )


def spend_of_round(
    study: StudyConfig,
    policy: PolicySection,
    *,
    run: str,
    round_number: int,
    release: str,
) -> Spend:
    """Return what one round of `study` will have cost this site, before it starts.

    Args:
        study: Names unit, noise and steps.
        policy: Says whether noise may be seeded.
        run: The run's identifier.
        round_number: 1-based.
        release: Names the release: the same name, the same bits if noise is seeded.
    """
    if study.privacy.unit == "none":
        return _without_privacy(study, run, round_number, release)
    if study.privacy.unit == "site":
        return _spend_per_site(study, policy, run, round_number, release)
    privacy = study.privacy
    assert study.training.local_steps is not None  # StudyConfig requires it under DP at sites
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


def charge(site: SiteConfig, spend: Spend, journal: WriteAhead | None = None) -> Charge:
    """Write `spend` into the site's ledger if the budget allows.

    The very same release is not charged twice where it is certain that there is one only: with
    seeded noise, which gives the same bits again; and where `journal` says that nothing left of
    what the ledger's last entry paid for.

    Raises:
        SiteRefusal: BUDGET when epsilon after the release would exceed the policy's; LEDGER when
            the ledger cannot be trusted; POLICY when what it holds lets no epsilon of this
            release's unit be stated. Nothing was written.
        OSError: It could not be written. It may count or not; nothing may be released.
    """
    policy = site.policy
    try:
        with Ledger(site.state_folder).locked() as ledger:
            spent = ledger.summary
            check_units(spend.unit, spent, policy)
            repeated = policy.allow_seeded_noise and ledger.has(spend)
            repeated = repeated or (journal is not None and _is_unused(spend, ledger, journal))
            after = spent if repeated else spent.plus(spend)
            cost = None
            if spend.unit != "none":
                cost = epsilon(after.events, policy.target_delta)
                if not (repeated or cost <= policy.max_epsilon):  # so that NaN is refused too
                    raise _over_budget(spend, after, cost, policy)
            if not repeated:
                if journal is not None:
                    journal.intend(ledger.head)
                ledger.append(spend)
            return Charge(cost, ledger.head)
    except LedgerError as error:
        raise SiteRefusal(RefusalReason.LEDGER, str(error)) from error


def _is_unused(spend: Spend, ledger: LockedLedger, journal: WriteAhead) -> bool:
    """Whether the ledger's last entry is this very release's, and nothing of it has left."""
    before = journal.head_before
    if before is None or not ledger.entries:
        return False
    *earlier, last = ledger.entries
    head = earlier[-1].hash if earlier else GENESIS
    if last.spend != spend or head != before:
        return False
    log.info("Round %d is charged already, and nothing of it has left.", spend.round_number)
    return True


def check_units(unit: str, spent: Summary, policy: PolicySection) -> None:
    """Refuse a release of `unit` whose epsilon does not follow from what the ledger holds.

    Raises:
        SiteRefusal: POLICY: the ledger has another unit, or releases without privacy.
    """
    private = spent.units - {"none"}
    if unit == "none":
        if private:
            log.warning(
                "Releasing without privacy from a data set that has private releases: their "
                "epsilon no longer bounds what is known of its patients."
            )
        return
    others = sorted(private - {unit})
    if others:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f"This data set's ledger holds spending per {' and '.join(others)}, with which an "
            f"epsilon per {unit} does not compose. Keep to studies of that unit here, or "
            "give the others a data set and a state folder of their own.",
        )
    if not spent.without_privacy:
        return
    if policy.unit != "none":
        raise SiteRefusal(
            RefusalReason.POLICY,
            "This data set's ledger holds releases without privacy: no epsilon covers them, so "
            "none can be stated. Use another data set with a state folder of its own, or set "
            'policy.unit = "none", where epsilon counts the private releases alone.',
        )
    log.warning(
        "This data set had releases without privacy. Its epsilon counts the private ones alone and "
        "bounds nothing that the others gave away."
    )


def _noise(policy: PolicySection) -> Literal["secure", "seeded"]:
    return "seeded" if policy.allow_seeded_noise else "secure"


def _spend_per_site(
    study: StudyConfig,
    policy: PolicySection,
    run: str,
    round_number: int,
    release: str,
) -> Spend:
    distributed = study.secure_aggregation.distributed_noise == "discrete_gaussian"
    return Spend(
        release=release,
        study=study.digest(),
        run=run,
        round_number=round_number,
        unit="site",
        images_per_patient=0,
        noise_multiplier=study.privacy.noise_multiplier,
        sample_rate=1.0,
        steps=1,
        max_grad_norm=study.privacy.site.max_update_norm,
        noise=_noise(policy) if distributed else "none",
        mechanism="discrete_gaussian" if distributed else "gaussian",
    )


def _without_privacy(
    study: StudyConfig,
    run: str,
    round_number: int,
    release: str,
    kind: Literal["training", "words", "statistics"] = "training",
) -> Spend:
    return Spend(
        release=release,
        study=study.digest(),
        run=run,
        round_number=round_number,
        unit="none",
        images_per_patient=0,
        noise_multiplier=0.0,
        sample_rate=1.0,
        steps=study.training.local_steps or 0 if kind == "training" else 1,
        max_grad_norm=0.0,
        noise="none",
        kind=kind,
    )


def _over_budget(spend: Spend, after: Summary, cost: float, policy: PolicySection) -> SiteRefusal:
    kinds = {"words": "Naming words", "statistics": "Statistics of the training data"}
    what = kinds.get(spend.kind, f"Round {spend.round_number}")
    words = f" (of which choosing words takes {after.extra_delta:g})" if after.extra_delta else ""
    return SiteRefusal(
        RefusalReason.BUDGET,
        f"{what} would bring this data set's epsilon ({spend.unit}) to {cost:.3f} at delta "
        f"{policy.target_delta:g}{words}; the policy allows {policy.max_epsilon:g}.",
    )
