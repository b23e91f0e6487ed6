"""Which algorithm of `[federation]` goes with which other settings, and why not with the rest."""

from typing import TYPE_CHECKING

from medfed.common.study.own_parts import check_own_parts
from medfed.common.study.split import check_split

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig


def check_algorithm(study: "StudyConfig") -> None:
    """Refuse an algorithm where it would not be what its paper says, or release more.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    algorithm = study.federation.algorithm
    _check_pace(study)
    if study.federation.keeps_order:
        _check_order(study)
        return
    if study.federation.keeps_at_sites:
        check_own_parts(study)
    if algorithm == "split":
        check_split(study)
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


# Why algorithms in which not all sites train at once, from the same weights, do not go with these.
_WHY_NOT = {
    "cyclic": {
        "secure": "each site trains from what the one before made, so there is no sum to hide it "
        "in",
        "site": "the next site would get one site's update, which has no noise",
        "robust": "updates are applied one by one, and a single one has no others to be compared "
        "with",
    },
    "fedbuff": {
        "secure": "masks cancel in a sum over sites that are known beforehand, and here it is over "
        "whoever was first",
        "site": "its epsilon counts on sites that are drawn at random, and here speed decides who "
        "is in a round",
        "robust": "it outvotes num_byzantine sites among all of a round, and a buffer holds "
        "whoever was first, from weights of different rounds",
    },
}


def _check_order(study: "StudyConfig") -> None:
    """Refuse what takes a round for one set of updates that all start from the same weights."""
    algorithm = study.federation.algorithm
    asked, why = f'federation.algorithm = "{algorithm}"', _WHY_NOT[algorithm]
    if study.secure_aggregation.enabled:
        raise ValueError(
            f"{asked} with secure_aggregation.enabled = true: {why['secure']}. Remove one of the "
            "two."
        )
    if study.privacy.unit == "site":
        raise ValueError(
            f'{asked} with privacy.unit = "site": {why["site"]}. Remove one of the two; '
            'privacy.unit = "patient" goes with it.'
        )
    if study.aggregation.robust:
        raise ValueError(
            f'{asked} with aggregation.rule = "{study.aggregation.rule}": {why["robust"]}. Set '
            'aggregation.rule = "mean"; aggregation.max_norm bounds each update.'
        )
    if study.federation.weighting not in ("auto", "uniform"):
        raise ValueError(
            f'federation.weighting = "{study.federation.weighting}" with {asked}: each site counts '
            'once. Set federation.weighting = "auto" or "uniform".'
        )
    if algorithm == "fedbuff":
        _check_fedbuff(study, asked)


def _check_fedbuff(study: "StudyConfig", asked: str) -> None:
    federation = study.federation
    assert federation.buffer_size is not None  # FederationSection writes it out
    if federation.buffer_size > federation.min_sites:
        raise ValueError(
            f"federation.buffer_size = {federation.buffer_size} with federation.min_sites = "
            f"{federation.min_sites}: no site is in a buffer twice, so it would never be full. Set "
            f"federation.min_sites = {federation.buffer_size} or more."
        )
    if federation.fraction < 1:
        raise ValueError(
            f"federation.fraction = {federation.fraction:g} with {asked}: who is first takes part, "
            "nobody is drawn. Remove it; federation.buffer_size says how many."
        )
    if study.model.norm == "batch":
        raise ValueError(
            f'{asked} with model.norm = "batch": what an old update adds to a running variance can '
            'make it negative. model.norm = "group" has none.'
        )


def _check_pace(study: "StudyConfig") -> None:
    simulation = study.simulation
    if simulation is None or study.federation.algorithm == "fedbuff":
        return
    if simulation.pace != type(simulation.pace)():
        raise ValueError(
            f'simulation.pace with federation.algorithm = "{study.federation.algorithm}", which '
            'waits for every site. Remove it, or set federation.algorithm = "fedbuff".'
        )
