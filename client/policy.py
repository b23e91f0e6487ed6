"""The policy gate: what the site allows, decided outside anything the server sends.

Plain functions of (study, policy). A no is a `SiteRefusal`: its reason code may leave, its detail
stays in the site's own log. They read no data, and nothing that a study says changes the policy.
What a release costs, and the charge to the ledger, are in `client.spending`.
"""

from collections.abc import Callable
from functools import lru_cache

from medfed.client.plugins import check_plugins
from medfed.client.site import PolicySection
from medfed.client.spending import (
    Charge,
    charge,
    check_units,
    spend_of_round,
    spend_of_statistics,
    spend_of_words,
)
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.study import StudyConfig
from medfed.common.study.model import REPORTERS

__all__ = [
    "Charge",
    "charge",
    "check_participants",
    "check_statistics",
    "check_study",
    "check_units",
    "check_words",
    "spend_of_round",
    "spend_of_statistics",
    "spend_of_words",
]

_MOST_WORDS = 100_000  # common.messages lets no more through

# What a policy accepts, weakest first; a ledger mixes none of them (client.spending).
_STRENGTH = {"none": 0, "site": 1, "record": 2, "patient": 3}


def check_study(study: StudyConfig, policy: PolicySection) -> None:
    """Refuse a study that asks for more than the site allows. Reads no data.

    Raises:
        SiteRefusal: POLICY, naming what was asked and what is allowed; STUDY, for a plug-in that is
            allowed and not installed in the study's version.
    """
    for check in _CHECKS:
        why = check(study, policy)
        if why:
            raise SiteRefusal(RefusalReason.POLICY, why)


def check_participants(num_participants: int, policy: PolicySection) -> None:
    """Refuse a round with too few sites.

    Args:
        num_participants: Sites of the round, this one included: as the server says, or better, as
            this site counted them.
        policy: States the least.
    """
    if num_participants < policy.min_participants:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f"The round has {num_participants} participants, this site's policy.min_participants "
            f"is {policy.min_participants}.",
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
    if study.privacy.unit == "site":
        raise SiteRefusal(
            RefusalReason.STUDY,
            "The study hides whole sites, and words with noise hide patients only: a word that one "
            "hospital alone uses would show that it took part. It needs a public vocabulary.",
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


def check_statistics(study: StudyConfig, policy: PolicySection) -> None:
    """Refuse a study that asks for statistics which the site does not let out. Reads no data."""
    asked = study.statistics
    if not asked.collect:
        raise SiteRefusal(
            RefusalReason.STUDY, "Asked for statistics by a study that collects none."
        )
    if study.privacy.unit == "site":
        raise SiteRefusal(
            RefusalReason.STUDY,
            "The study hides whole sites, and statistics with noise hide patients only.",
        )
    if policy.release_statistics == "never":
        raise SiteRefusal(
            RefusalReason.POLICY, 'This site\'s policy.release_statistics is "never".'
        )
    if asked.noise_multiplier is None and study.privacy.enabled:
        raise SiteRefusal(
            RefusalReason.POLICY,
            f"The study states an epsilon per {study.privacy.unit} and asks for statistics without "
            "noise (no statistics.noise_multiplier): that epsilon would not cover them.",
        )
    if asked.noise_multiplier is None and policy.release_statistics != "suppressed":
        raise SiteRefusal(
            RefusalReason.POLICY,
            "The study asks for statistics without noise (no statistics.noise_multiplier), this "
            f'site\'s policy.release_statistics is "{policy.release_statistics}".',
        )


def _unit(study: StudyConfig, policy: PolicySection) -> str:
    if _STRENGTH[study.privacy.unit] >= _STRENGTH[policy.unit]:
        return ""
    return (
        f'The study\'s privacy.unit is "{study.privacy.unit}", this site requires '
        f'"{policy.unit}" or stronger.'
    )


def _images_per_patient(study: StudyConfig, policy: PolicySection) -> str:
    asked = study.privacy.images_per_patient
    if asked <= policy.max_images_per_patient:
        return ""
    return (
        f"The study takes up to {asked} images of a patient a step, this site allows "
        f"{policy.max_images_per_patient}."
    )


def _noise(study: StudyConfig, policy: PolicySection) -> str:
    asked = [study.privacy.noise_multiplier] if study.privacy.enabled else []
    others = (study.task.report.words_noise_multiplier, study.statistics.noise_multiplier)
    asked += [noise_multiplier for noise_multiplier in others if noise_multiplier is not None]
    if min(asked, default=policy.min_noise_multiplier) >= policy.min_noise_multiplier:
        return ""
    return (
        f"The study's noise_multiplier is {min(asked):g}, this site's "
        f"policy.min_noise_multiplier is {policy.min_noise_multiplier:g}."
    )


def _task(study: StudyConfig, policy: PolicySection) -> str:
    if not policy.tasks or study.task.type in policy.tasks:
        return ""
    return f'The study\'s task is "{study.task.type}", this site allows {", ".join(policy.tasks)}.'


def _networks(study: StudyConfig, policy: PolicySection) -> str:
    asked = {study.model.name}
    if study.model.name in REPORTERS:
        asked.add(study.model.encoder)
    if not policy.models or asked <= set(policy.models):
        return ""
    return (
        f"The study's model needs {', '.join(sorted(asked))}, this site allows "
        f"{', '.join(policy.models)}."
    )


def _length(study: StudyConfig, policy: PolicySection) -> str:
    steps, epochs = study.training.local_steps or 0, study.training.local_epochs or 0
    if steps > policy.max_steps_per_round:
        return (
            f"The study asks for {steps} steps a round, this site's policy.max_steps_per_round is "
            f"{policy.max_steps_per_round}."
        )
    if epochs > policy.max_epochs_per_round:
        return (
            f"The study asks for {epochs} passes a round, this site's policy.max_epochs_per_round "
            f"is {policy.max_epochs_per_round}."
        )
    return ""


def _secure_aggregation(study: StudyConfig, policy: PolicySection) -> str:
    if study.secure_aggregation.enabled or not policy.require_secure_aggregation:
        return ""
    return (
        "The study has no secure aggregation, this site's policy.require_secure_aggregation is on."
    )


def _activations(study: StudyConfig, policy: PolicySection) -> str:
    if study.federation.algorithm != "split" or policy.allow_activations:
        return ""
    return (
        "The study is split learning: activations of every training image would leave, without "
        "noise. This site's policy.allow_activations is off."
    )


def _batch(study: StudyConfig, policy: PolicySection) -> str:
    if study.privacy.at_sites:
        images = study.privacy.chunk * study.privacy.images_per_patient
    else:
        images = study.training.batch_size
        if study.semi_supervised.method != "none":
            images += study.semi_supervised.batch_size or study.training.batch_size
    images = max(images * study.augmentation.multiplicity, study.evaluation.batch_size)
    data = study.data
    pixels = images * data.total_channels * data.image_size**data.dimensions
    if pixels <= policy.max_megapixels * 1e6:
        return ""
    return (
        f"The study's batches hold up to {pixels / 1e6:g} million pixels, this site's "
        f"policy.max_megapixels is {policy.max_megapixels:g}."
    )


def _size(study: StudyConfig, policy: PolicySection) -> str:
    num_outputs = len(study.task.classes) + 1
    if study.task.plugin:
        from medfed.common.tasks import make_task

        num_outputs = make_task(study).num_outputs
    if study.task.type == "report":
        # Of a vocabulary file, only its largest size is known yet.
        num_outputs = (
            _MOST_WORDS if study.task.report.vocabulary else study.task.report.vocabulary_size
        )
    try:
        size = _num_parameters(study.for_sites(), num_outputs)
    except (RuntimeError, OverflowError):  # torch: sizes that no tensor can have
        size = None
    if size is not None and size <= policy.max_parameters:
        return ""
    what = "more numbers than can be counted" if size is None else f"{size} numbers"
    return (
        f"The study's network has {what}, this site's policy.max_parameters is "
        f"{policy.max_parameters}."
    )


@lru_cache(maxsize=256)
def _num_parameters(study: StudyConfig, num_outputs: int) -> int:
    """Count the network's numbers without taking memory for them.

    Raises:
        StudyError: It cannot be built.
    """
    from medfed.common.models import build_model
    from medfed.common.models.without_weights import without_weights

    bare = study.model.model_copy(update={"weights": "", "weights_sha256": "", "freeze": "none"})
    with without_weights():
        model = build_model(study.model_copy(update={"model": bare}), num_outputs)
    return sum(part.numel() for part in (*model.parameters(), *model.buffers()))


_CHECKS: tuple[Callable[[StudyConfig, PolicySection], str], ...] = (
    check_plugins,  # before a check that builds the network
    _unit,
    _images_per_patient,
    _noise,
    _task,
    _networks,
    _secure_aggregation,
    _activations,
    _length,
    _batch,
    _size,
)
