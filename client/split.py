"""A site's side of a round of split learning: its own parts of the network, step by step.

    activations   front(batch)                               -> the server's middle
    learn         back(features), loss; back steps           -> gradient for the middle
    finish        front(batch) again, gradient; front steps

The batches, the views of their images, the loss and the optimiser are those of
`client.training.train_without_privacy`, so that site and server together take the very steps that
a site takes alone. Between two messages the site's network may serve another site, and its process
may be another one: `SplitState` is all that is kept. The front's work is done once to send and once
to go back through, so that no image has to be kept.

Shapes: B images in a batch.

References: Vepakomma et al. 2018, https://arxiv.org/abs/1812.00564 (U-shape: no label leaves);
Thapa et al. 2022, https://arxiv.org/abs/2004.12088 (SplitFedV1)
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from safetensors.numpy import load, save

from medfed.client.batches import BatchLoader
from medfed.client.training import Round, TrainingResult, step_positions, views_rng
from medfed.client.workspace import Workspace
from medfed.common.errors import MessageError
from medfed.common.models import cut_shapes, set_training_mode
from medfed.common.models.stages import cut
from medfed.common.state_dicts import StateDict, difference
from medfed.common.tasks import Batch
from medfed.common.trained_part import Array, TrainedPart, to_array, to_tensor

_START, _FRONT, _BACK = "start/", "front/", "back/"
_FRONT_MOMENTS, _BACK_MOMENTS = "moments of front/", "moments of back/"
_LOSS = "loss"


class Values(TypedDict):
    """What Flower's records can hold of a `SplitState`."""

    facts: str
    arrays: bytes


@dataclass(frozen=True, kw_only=True)
class SplitState:
    """What a site remembers between two messages of a round. It never leaves.

    Attributes:
        about: Names the study, run and round.
        head: Hash of the ledger's entry for the round.
        step: 0-based step under way.
        after: What was done last.
        views: State of the generator of views before the step's batch.
        num_seen: Images that the losses were added up over.
        arrays: Weights at the start and now, what optimisers remember, the sum of losses.
    """

    about: str
    head: str
    step: int
    after: Literal["begin", "activations", "learn"]
    views: Mapping[str, Any]
    num_seen: int = 0
    arrays: StateDict = field(default_factory=dict)

    def part(self, prefix: str) -> StateDict:
        """Return the arrays whose names begin so, without that."""
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }

    def to_values(self) -> Values:
        """Return the state as a text and bytes."""
        facts = {
            "about": self.about,
            "head": self.head,
            "step": self.step,
            "after": self.after,
            "views": self.views,
            "num_seen": self.num_seen,
            "names": list(self.arrays),
        }
        arrays = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        return Values(facts=json.dumps(facts), arrays=save(arrays))

    @classmethod
    def from_values(cls, facts: str, arrays: bytes) -> "SplitState":
        """Read a state that `to_values` wrote."""
        table = json.loads(facts)
        names, found = table.pop("names"), load(arrays)
        return cls(**table, arrays={name: found[name] for name in names})


class SplitTraining:
    """The parts that a site trains, for one message.

    Args:
        here: Data, task and network; the network's weights are overwritten.
        this: The round.
    """

    def __init__(self, here: Workspace, this: Round) -> None:
        self._here, self._this = here, this
        study, training = this.study, this.study.training
        parts = cut(here.model, study)
        self._front = TrainedPart(here.model, parts.front, training, this.device)
        self._back = TrainedPart(here.model, parts.back, training, this.device)
        self._loader = BatchLoader(here.data.train, here.task, study, this.device)
        set_training_mode(here.model)

    def begin(self, weights: StateDict, about: str, head: str) -> SplitState:
        """Return the state of a round that begins from `weights` of front and back."""
        front = set(self._front.names)
        arrays: StateDict = {_START + name: array for name, array in weights.items()}
        for name, array in weights.items():
            arrays[(_FRONT if name in front else _BACK) + name] = array
        arrays[_LOSS] = np.zeros((), np.float32)
        views = views_rng(self._this).bit_generator.state
        return SplitState(about=about, head=head, step=0, after="begin", views=views, arrays=arrays)

    def is_over(self, state: SplitState) -> bool:
        """Whether all of the round's steps are taken."""
        return state.step >= self._num_steps

    def activations(self, state: SplitState) -> tuple[Array, SplitState]:
        """Return the front's output [B, ...] for the step's batch."""
        self._restore_front(state)
        with torch.no_grad():
            output = self._front(self._batch(state).inputs[0])
        # Of the parts nothing is taken over: a BatchNorm's statistics count once, in `finish`.
        return to_array(output), replace(state, after="activations")

    def learn(self, state: SplitState, features: Array) -> tuple[Array, SplitState]:
        """Let the back learn from the middle's output; return the gradient with respect to that.

        Raises:
            MessageError: Not float32 of the batch's shape, or not finite.
        """
        batch = self._batch(state)
        _, shape = cut_shapes(self._this.study, self._here.task.num_outputs)
        _check("features", features, (len(batch.targets), *shape))
        self._back.restore(state.part(_BACK), state.part(_BACK_MOMENTS))
        inputs = to_tensor(features, self._here.model, self._this.device).requires_grad_()
        losses_B = self._here.task.loss_per_image(self._back(inputs), batch.targets)
        self._back.step(losses_B.mean())
        assert inputs.grad is not None
        total = torch.from_numpy(np.array(state.arrays[_LOSS])).to(self._this.device)
        total += losses_B.detach().sum()
        kept = state.arrays | _prefixed(_BACK, self._back.weights())
        kept |= _prefixed(_BACK_MOMENTS, self._back.moments())
        kept[_LOSS] = to_array(total)
        seen = state.num_seen + len(losses_B)
        return to_array(inputs.grad), replace(state, after="learn", num_seen=seen, arrays=kept)

    def finish(self, state: SplitState, gradient: Array) -> SplitState:
        """Let the front learn from the gradient with respect to its output; the step is taken.

        Raises:
            MessageError: Not float32 of the output's shape, or not finite.
        """
        self._restore_front(state)
        views = _generator(state.views)
        output = self._front(self._batch(state, views).inputs[0])
        _check("gradient", gradient, tuple(output.shape))
        self._front.step(output, to_tensor(gradient, self._here.model, self._this.device))
        kept = state.arrays | _prefixed(_FRONT, self._front.weights())
        kept |= _prefixed(_FRONT_MOMENTS, self._front.moments())
        return replace(
            state,
            step=state.step + 1,
            after="begin",
            views=views.bit_generator.state,
            arrays=kept,
        )

    def result(self, state: SplitState) -> TrainingResult:
        """Return the update of front and back, and the mean loss of all steps."""
        start = state.part(_START)
        new = state.part(_FRONT) | state.part(_BACK)
        loss = float(state.arrays[_LOSS]) / state.num_seen
        return TrainingResult(difference(new, start), loss)

    @property
    def _num_steps(self) -> int:
        return self._this.study.training.steps_for(len(self._here.data.train))

    def _restore_front(self, state: SplitState) -> None:
        self._front.restore(state.part(_FRONT), state.part(_FRONT_MOMENTS))

    def _batch(self, state: SplitState, views: np.random.Generator | None = None) -> Batch:
        study, data = self._this.study, self._here.data.train
        every = step_positions(len(data), study.training, self._this)
        own = next(itertools.islice(every, state.step, None))
        chosen = np.repeat(own, study.augmentation.multiplicity)
        return self._loader.training_batch(chosen, views or _generator(state.views))


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    rng = np.random.default_rng()
    rng.bit_generator.state = dict(state)
    return rng


def _prefixed(prefix: str, arrays: StateDict) -> StateDict:
    return {prefix + name: array for name, array in arrays.items()}


def _check(what: str, array: Array, shape: tuple[int, ...]) -> None:
    """Hold what the server sent to what its part would make of this site's batch."""
    if array.dtype != np.float32 or array.shape != shape:
        raise MessageError(
            f"{what}: expected float32 of shape {list(shape)}, got {array.dtype} of shape "
            f"{list(array.shape)}."
        )
    if not np.isfinite(array).all():
        raise MessageError(f"{what}: NaN or infinite values.")
