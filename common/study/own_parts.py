"""Which algorithms that keep a part of the model at each site go with what, and why not the rest.

fedbn keeps normalisations, ditto and apfl a whole personal model (docs/adr/0022).
"""

from typing import TYPE_CHECKING

from medfed.common.study.model import WITHOUT_NORM

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig


def check_own_parts(study: "StudyConfig") -> None:
    """Refuse fedbn, ditto or apfl where figures would release what nothing covers, or mislead.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    algorithm = study.federation.algorithm
    asked = f'federation.algorithm = "{algorithm}"'
    if study.federation.ema_decay:
        raise ValueError(
            f"federation.ema_decay = {study.federation.ema_decay:g} with {asked}: what a site "
            "keeps belongs to the latest weights, not to their average. Remove one of the two."
        )
    if algorithm == "fedbn":
        _check_fedbn(study, asked)
    elif study.privacy.enabled:
        raise ValueError(
            f'{asked} with privacy.unit = "{study.privacy.unit}": figures of a personal model tell '
            "of the patients that it was trained on, and its steps have no noise, so no epsilon "
            'would cover them. Set privacy.unit = "none", or federation.algorithm = "fedbn", whose '
            "site-owned part is trained with the noise."
        )


def _check_fedbn(study: "StudyConfig", asked: str) -> None:
    network = study.model.feature_network
    if network in WITHOUT_NORM:
        raise ValueError(
            f"{asked} with the {network}, which has no normalisation to keep at the sites. Set "
            'model.name = "resnet18", or another network that has, or federation.algorithm = '
            '"fedavg".'
        )
    if study.privacy.unit == "site":
        raise ValueError(
            f'{asked} with privacy.unit = "site": the noise is on the sum of what travels, so '
            "figures made with a site's own normalisation would have none. Set privacy.unit = "
            '"patient", or federation.algorithm = "fedavg".'
        )
