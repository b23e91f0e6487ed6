"""What a site answers in a round of split learning, half a step at a time (`client.split`).

With every batch, activations of its images leave, and gradients. No noise covers them, so a site
takes part only where `policy.allow_activations` says so. Images and labels themselves stay: the
loss is worked out here. A server that wants to can work the labels out (docs/adr/0028).

A message that does not follow the one before it (a worker that was started anew, a replay) is
refused, and the site has failed for the round; the next one begins afresh.
"""

import hashlib
import json
from typing import Protocol

from medfed.client import policy
from medfed.client.answers import Answer
from medfed.client.groundwork import keep_countersignature, network_of, round_of, spend_of
from medfed.client.releases import Cost
from medfed.client.site import SiteConfig
from medfed.client.split import SplitState, SplitTraining
from medfed.client.workspace import Workspace
from medfed.common.errors import MessageError, RefusalReason, SiteRefusal, StudyError
from medfed.common.messages import (
    ACTIVATIONS,
    FEATURES,
    GRADIENT,
    SplitReply,
    SplitRequest,
    TrainReply,
)
from medfed.common.models.stages import cut
from medfed.common.state_dicts import check_fits
from medfed.common.trained_part import Array


class SplitMemory(Protocol):
    """Where a site's own parts are between the messages of a round."""

    def read(self) -> SplitState | None:
        """Return what was kept last."""
        ...

    def keep(self, state: SplitState | None) -> None:
        """Replace it; None to forget it."""
        ...


def go_forward(request: SplitRequest, site: SiteConfig, memory: SplitMemory) -> Answer:
    """Finish the step before, if there is one; then send the next batch's activations.

    After the last step the update of front and back is sent instead.
    """
    _check_asked(request, site)
    here, this = network_of(request, site), round_of(request, site)
    training = SplitTraining(here, this)
    if request.step == 0:
        state = _begin(request, site, here, training)
    else:
        state = _known(request, memory, request.step - 1, "learn")
        state = training.finish(state, _only(request, GRADIENT))
    if training.is_over(state):
        memory.keep(None)
        return _update(training, state, here, site)
    array, state = training.activations(state)
    memory.keep(state)
    reply = SplitReply(site=site.name, name=ACTIVATIONS, array=array)
    return Answer(reply, {ACTIVATIONS: _cost(ACTIVATIONS, len(array))})


def go_back(request: SplitRequest, site: SiteConfig, memory: SplitMemory) -> Answer:
    """Work out the loss from the middle's output, and send the gradient with respect to that."""
    _check_asked(request, site)
    state = _known(request, memory, request.step, "activations")
    training = SplitTraining(network_of(request, site), round_of(request, site))
    array, state = training.learn(state, _only(request, FEATURES))
    memory.keep(state)
    reply = SplitReply(site=site.name, name=GRADIENT, array=array)
    cost = _cost("gradients", len(array))
    text = f"{cost.text}; their labels can be worked out"
    return Answer(reply, {GRADIENT: cost._replace(text=text)})


def _begin(
    request: SplitRequest, site: SiteConfig, here: Workspace, training: SplitTraining
) -> SplitState:
    """Begin a round, whatever was under way; it is charged before anything of it leaves."""
    names = cut(here.model, request.study).at_site
    # Before any charge, as with whole models.
    check_fits({name: here.network.start[name] for name in names}, request.arrays)
    keep_countersignature(request, site)
    charge = policy.charge(site, spend_of(request, site))
    return training.begin(request.arrays, _about(request), charge.head)


def _update(
    training: SplitTraining, state: SplitState, here: Workspace, site: SiteConfig
) -> Answer:
    result = training.result(state)
    reply = TrainReply(
        site=site.name,
        update=result.update,
        num_examples=len(here.data.train),
        loss=result.loss,
        epsilon=None,
        noise="none",
        ledger_head=state.head,
    )
    return Answer(reply, {"update": Cost("none", "exact, of the site's own parts, no DP")})


def _cost(what: str, num_images: int) -> Cost:
    return Cost("none", f"{what} of {num_images} training images, no DP")


def _check_asked(request: SplitRequest, site: SiteConfig) -> None:
    # The policy looks at the algorithm: other studies must not get activations by another name.
    if request.study.federation.algorithm != "split":
        raise StudyError("Asked for a step of split learning by a study that is of another kind.")
    policy.check_participants(request.num_participants, site.policy)


def _known(request: SplitRequest, memory: SplitMemory, step: int, after: str) -> SplitState:
    """Return this round's state, which must be where the request goes on from."""
    state = memory.read()
    if state is None or state.about != _about(request):
        raise SiteRefusal(
            RefusalReason.INTERNAL,
            "Split learning: asked to go on with a round whose parts are not in memory (the "
            "process was started anew?). The next round begins afresh.",
        )
    if (state.step, state.after) != (step, after):
        raise SiteRefusal(
            RefusalReason.INTERNAL,
            f"Split learning: asked to go on after {after!r} of step {step}, and this site is "
            f"after {state.after!r} of step {state.step}. The next round begins afresh.",
        )
    return state


def _about(request: SplitRequest) -> str:
    parts = [request.study.digest(), request.run, request.round_number]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _only(request: SplitRequest, name: str) -> Array:
    if set(request.arrays) != {name}:
        raise MessageError(f"Expected {name} and no other arrays, got {len(request.arrays)}.")
    return request.arrays[name]
