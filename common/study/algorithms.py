"""Which algorithm of `[federation]` goes with which other settings, and why not with the rest."""

from typing import TYPE_CHECKING

from medfed.common.study.own_parts import check_own_parts

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig


def check_algorithm(study: "StudyConfig") -> None:
    """Refuse an algorithm where it would not be what its paper says, or release more.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    algorithm = study.federation.algorithm
    if study.federation.keeps_at_sites:
        check_own_parts(study)
    if algorithm not in ("fednova", "scaffold", "qfedavg"):
        return
    asked = f'federation.algorithm = "{algorithm}"'
    if study.training.optimizer != "sgd":
        raise ValueError(
            f'{asked} with training.optimizer = "{study.training.optimizer}": it counts on a '
            "step being the learning rate times a gradient. Set training.optimizer = "
            '"sgd", or federation.algorithm = "fedavg".'
        )
    if study.aggregation.robust or study.aggregation.max_norm:
        bound = study.aggregation.rule if study.aggregation.robust else "max_norm"
        why = {
            "fednova": "what a site adds is divided by the number of steps that it states, so a "
            "bound on its update is none on that",
            "scaffold": "the mean of what sites drift by corrects every site, so one that lies "
            "moves all the others past the rule",
            "qfedavg": "an update counts by the loss that its site states, so a bound on it is "
            "none on that",
        }[algorithm]
        raise ValueError(f"{asked} with aggregation ({bound}): {why}. Remove one of the two.")
    if algorithm == "fednova":
        _check_fednova(study, asked)
    elif algorithm == "qfedavg":
        _check_qfedavg(study, asked)
    else:
        _check_scaffold(study, asked)


def _check_fednova(study: "StudyConfig", asked: str) -> None:
    hidden = study.secure_aggregation.enabled or study.privacy.enabled
    if study.training.local_steps is None and hidden:
        why = (
            "secure_aggregation.enabled = true"
            if study.secure_aggregation.enabled
            else f'privacy.unit = "{study.privacy.unit}"'
        )
        raise ValueError(
            f"training.local_epochs with {asked} and {why}: the server would have to be told each "
            "site's number of images. Set training.local_steps instead; all sites then take the "
            "same number of steps, which is fedavg."
        )


def _check_qfedavg(study: "StudyConfig", asked: str) -> None:
    if study.privacy.enabled:
        raise ValueError(
            f'{asked} with privacy.unit = "{study.privacy.unit}": what a site sends counts by its '
            "exact loss over its training images, which no noise covers. Set privacy.unit = "
            '"none", or federation.algorithm = "fedavg".'
        )
    if study.secure_aggregation.enabled:
        raise ValueError(
            f"{asked} with secure_aggregation.enabled = true: a server that sees only the sum "
            "cannot weigh one site's update by its loss. Remove one of the two."
        )


def _check_scaffold(study: "StudyConfig", asked: str) -> None:
    if study.training.momentum:
        raise ValueError(
            f"{asked} with training.momentum = {study.training.momentum:g}: the mean gradient of a "
            "site is read from its update, which holds for plain steps. Set training.momentum = 0."
        )
    if study.secure_aggregation.enabled:
        raise ValueError(
            f"{asked} with secure_aggregation.enabled = true: a server that sees only the sum "
            "cannot tell what one site drifts by. Remove one of the two."
        )
    if study.privacy.unit == "site":
        raise ValueError(
            f'{asked} with privacy.unit = "site": what corrects the others is made of each '
            "site's own update, which has no noise. Remove one of the two; privacy.unit = "
            '"patient" goes with it.'
        )
    if study.federation.weighting not in ("auto", "uniform"):
        raise ValueError(
            f'federation.weighting = "{study.federation.weighting}" with {asked}: its correction '
            "is the mean over all sites, each counted once. Set federation.weighting = "
            '"auto" or "uniform".'
        )
