"""What a round does with the part of the model that is a site's own: fedbn, ditto, apfl.

    training      the part as the round before left it -> trained beside the update -> kept
    evaluation    the global weights with the site's own part, or its personal model

Where nothing is a site's own this does nothing. The part is on the disk before the update may
leave, and before `client.replies` keeps that: an update that left without its part could not be
gone on from.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medfed.client.apfl import ApflModel, alpha_of, first_alpha, learned_alpha, mixture_of
from medfed.client.ditto import DittoModel
from medfed.client.own_parts import OwnParts
from medfed.client.site import SiteConfig
from medfed.client.training import Beside
from medfed.client.workspace import Workspace, pick_device
from medfed.common.messages import ModelRequest
from medfed.common.models import local_names, trained_parameters
from medfed.common.state_dicts import StateDict, read_state, write_state
from medfed.common.study import StudyConfig


@contextmanager
def own_part(here: Workspace, request: ModelRequest, site: SiteConfig) -> Iterator[Beside | None]:
    """Bring the site's own part to this round, and keep what training within makes of it.

    Yields:
        What trains beside the global model, batch by batch; None where nothing does.

    Raises:
        OSError: It could not be kept: nothing of the round may leave.
    """
    study = request.study
    if not study.federation.keeps_at_sites:
        yield None
        return
    parts = OwnParts(site.state_folder, request.run, study.digest())
    start = _start(here, request)
    before = parts.after(request.round_number - 1, start) or start
    if study.federation.has_personal_models:
        beside = _beside(here, request, before, pick_device(study, site))
        yield beside
        part = beside.state()
    else:
        write_state(here.model, before)
        yield None
        part = read_state(here.model, list(start))
    parts.keep(request.round_number, part, learned_alpha(part))


def own_weights(here: Workspace, request: ModelRequest, site: SiteConfig) -> StateDict:
    """Return what a site evaluates: the global weights with its own part, or its personal model."""
    study = request.study
    if not study.federation.keeps_at_sites:
        return request.weights
    parts = OwnParts(site.state_folder, request.run, study.digest())
    start = _start(here, request)
    part = parts.after(request.round_number, start) or start
    return combined(study, request.weights, part, trained_parameters(here.model))


def weights_before(here: Workspace, request: ModelRequest, site: SiteConfig) -> StateDict:
    """Return the global model as this site has it before it trains the round.

    With fedbn the site's own normalisations are a part of it, which no request brings.
    """
    study = request.study
    if study.federation.algorithm != "fedbn":
        return request.weights
    parts = OwnParts(site.state_folder, request.run, study.digest())
    start = _start(here, request)
    return request.weights | (parts.after(request.round_number - 1, start) or start)


def combined(
    study: StudyConfig, weights: StateDict, part: StateDict, parameters: tuple[str, ...]
) -> StateDict:
    """Return the weights of the model that a site uses.

    Args:
        study: With fedbn, ditto or apfl.
        weights: The global ones.
        part: The site's own.
        parameters: Names of what has gradients.
    """
    if study.federation.algorithm == "fedbn":
        return {**weights, **part}
    if study.federation.algorithm == "apfl":
        return mixture_of(part, weights, parameters, alpha_of(part, study))
    return part


def first_part(study: StudyConfig, shared: StateDict, local: StateDict) -> StateDict:
    """Return the part of a site that has none yet.

    Args:
        study: With fedbn, ditto or apfl.
        shared: The global weights: a personal model starts as they are.
        local: What is not sent, as the study's seed and weights file make it.
    """
    if study.federation.has_personal_models:
        return {**shared, **first_alpha(study)}
    return local


def _start(here: Workspace, request: ModelRequest) -> StateDict:
    local = {name: here.network.start[name] for name in local_names(here.model, request.study)}
    return first_part(request.study, request.weights, local)


def _beside(
    here: Workspace, request: ModelRequest, before: StateDict, device: torch.device
) -> Beside:
    if request.study.federation.algorithm == "ditto":
        return DittoModel(here.model, request.weights, before, here.task, request.study, device)
    return ApflModel(here.model, before, here.task, request.study, device)
