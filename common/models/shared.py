"""What of a model the sites share. What is local to each site trains there and never travels.

FedBN: normalisations, with their statistics, are local, since they hold what a site's scanner and
patients look like; everything else that trains is shared.

Reference: Li et al. 2021, https://arxiv.org/abs/2102.07623
"""

from torch import nn

from medfed.common.errors import StudyError
from medfed.common.models.freezing import normalisation_names, trained_names
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig


def local_names(model: nn.Module, study: StudyConfig) -> tuple[str, ...]:
    """Return the names of what trains of `model` and stays at each site, in the state's order.

    Raises:
        StudyError: With fedbn, nothing would stay, or nothing would travel.
    """
    if study.federation.algorithm != "fedbn":
        return ()
    found = normalisation_names(model)
    if found and len(found) < len(trained_names(model)):
        return found
    raise StudyError(
        'federation.algorithm = "fedbn": expected a model in which normalisations train and other '
        f"layers too, got {len(found)} of {len(trained_names(model))} arrays that train in "
        'normalisations. Change model.freeze, or set federation.algorithm = "fedavg".'
    )


def shared_names(model: nn.Module, study: StudyConfig) -> tuple[str, ...]:
    """Return the names of what trains and travels, in the state's order."""
    local = set(local_names(model, study))
    return tuple(name for name in trained_names(model) if name not in local)


def shared_state(model: nn.Module, study: StudyConfig) -> StateDict:
    """Return copies of what trains and travels: all that is sent and aggregated."""
    return read_state(model, shared_names(model, study))
