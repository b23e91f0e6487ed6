"""What split learning goes with, and why not with the rest (docs/adr/0028)."""

from typing import TYPE_CHECKING

from medfed.common.study.failures import UPDATE_POISONS
from medfed.common.study.model import CLASSIFIERS

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig

_ASKED = 'federation.algorithm = "split"'


def check_split(study: "StudyConfig") -> None:
    """Refuse what would claim a protection that activations do not have, or what cannot be cut.

    Whether the network has enough stages is for `common.models.stages`.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    _check_protection(study)
    _check_network(study)
    if study.compression.update != "none":
        raise ValueError(
            f'{_ASKED} with compression.update = "{study.compression.update}": an update is the '
            "least of what travels here, and activations stay as they are. Remove it."
        )
    if study.semi_supervised.method != "none":
        raise ValueError(
            f'{_ASKED} with semi_supervised.method = "{study.semi_supervised.method}": a site has '
            "not the whole network to guess with while it trains. Remove one of the two."
        )
    _check_simulation(study)


def _check_protection(study: "StudyConfig") -> None:
    if study.privacy.enabled:
        raise ValueError(
            f'{_ASKED} with privacy.unit = "{study.privacy.unit}": activations of every image '
            "leave a site, and clipping and noise are for gradients: no epsilon would cover them. "
            'Set privacy.unit = "none", or federation.algorithm = "fedavg".'
        )
    if study.secure_aggregation.enabled:
        raise ValueError(
            f"{_ASKED} with secure_aggregation.enabled = true: the server computes with each "
            "site's activations, so it has to see them. Remove one of the two."
        )


def _check_network(study: "StudyConfig") -> None:
    if study.task.type != "classification" or study.model.name not in CLASSIFIERS:
        why = {
            "segmentation": "the skip connections of a U-Net cross every cut, and the server would "
            "get the image's outlines at full size",
            "report": "words go in behind the cut, and they must not leave",
        }.get(study.task.type, "a plug-in does not say where it can be cut")
        raise ValueError(
            f'{_ASKED} with model.name = "{study.model.name}": {why}. Set model.name to one of '
            f'{", ".join(CLASSIFIERS)}, or federation.algorithm = "fedavg".'
        )
    if study.uses_fusion:
        raise ValueError(
            f'{_ASKED} with data.tabular or model.fusion = "late": columns and views come together '
            "behind the cut, so the server would get them as they are. Remove them; views go in "
            'side by side with fusion = "early".'
        )


def _check_simulation(study: "StudyConfig") -> None:
    simulation = study.simulation
    if simulation is None:
        return
    if simulation.annotation is not None:
        raise ValueError(
            f"{_ASKED} with simulation.annotation: a site has not the whole network to choose "
            "patients with before it trains. Remove one of the two."
        )
    if simulation.failures.poisoned_by(*UPDATE_POISONS) or simulation.failures.boost != 1.0:
        raise ValueError(
            f"{_ASKED} with simulation.failures that change an update: a site sends the update of "
            'its own parts alone. Remove them; "label_flip" and "backdoor" without boost go with '
            "it."
        )
