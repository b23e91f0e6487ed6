"""Split learning: each site trains the first layers and the last, the server those between.

Step by step and site by site:

    activations of a batch  ->  middle  ->  features for the site's last layer
    gradient of the loss    ->  back through the middle, which steps  ->  gradient for the front

Every site of a round has a copy of the middle, which starts from the global weights and is trained
with that site's batches alone. At the end of the round the update of its copy and the site's own
update of front and back are one update: the one that the site would have made with the whole
network, to the bit. So screening, rules, weights, checkpoints and records are those of FedAvg.

Nothing of a round is kept through a kill: it is begun anew from the checkpoint, and ends in the
same weights. A site that is lost in the middle of a round has failed for it; if the quorum needs
it, the round is begun anew (`server.quorum`).

References: Vepakomma et al. 2018, https://arxiv.org/abs/1812.00564 (U-shape: no label leaves);
Thapa et al. 2022, https://arxiv.org/abs/2004.12088 (SplitFedV1: sites in parallel, all parts
averaged)
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor, nn

from medfed.common import messages
from medfed.common.arithmetic import device_for, make_arithmetic_repeatable
from medfed.common.errors import RunError, UpdateError
from medfed.common.messages import ACTIVATIONS, FEATURES, GRADIENT, SplitReply
from medfed.common.models import cut_shapes, set_training_mode
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.models.stages import Shape, cut
from medfed.common.state_dicts import difference, digest, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.common.trained_part import Array, TrainedPart, to_array, to_tensor
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.progress import Progress
from medfed.server.run import Run
from medfed.server.screening import screen_batch, screen_size
from medfed.server.updates import TrainedHere

Announced = Callable[[Iterable[Message]], Iterator[Message]]


def train_split(
    run: Run, number: int, progress: Progress, started: str, announced: Announced
) -> ArrayRecord | None:
    """Train one round with its participants, and return the weights after it.

    Args:
        run: The run.
        number: The round.
        progress: The global weights now.
        started: When the round began (ISO).
        announced: Passes replies on and tells what became of each.

    Returns:
        None if nobody's update could be used.
    """
    strategy = run.strategy
    sites = strategy.choose(number)
    names = [site.name for site in sites]
    run.arm.emit("round", round=number, sites=len(names), names=names)
    middles = Middles(run, number, progress, len(sites))
    strategy.start_from(progress.weights, {}, middles.trained)
    exchange = run.exchange(
        started, progress, asks_again=False, forgets=True, besides=middles.most_bytes
    )
    replies = exchange.replies(
        middles.begin(sites),
        run.study.federation.round_timeout_s,
        lambda: strategy.num_updates >= run.needed,
    )
    arrays, _ = strategy.aggregate_train(number, announced(middles.updates(replies, exchange)))
    strategy.conversation.note_failures(exchange.failures)
    strategy.conversation.note_ignored(exchange.ignored)
    return arrays


@dataclass
class _Middle:
    """One site's copy of the middle.

    Attributes:
        site: The site.
        model: A network of which the middle alone is used.
        part: The middle in training.
        step: 0-based step under way.
        awaits: What the site is to send next.
        entered: What it sent last, a leaf that takes the gradient.
        left: What the middle made of it.
    """

    site: Participant
    model: nn.Module
    part: TrainedPart
    step: int = 0
    awaits: Literal["activations", "gradient"] = "activations"
    entered: Tensor | None = None
    left: Tensor | None = None


class Middles:
    """The copies of the middle in one round.

    Args:
        run: The run.
        number: The round.
        progress: The global weights now.
        num_participants: Sites of the round.

    Attributes:
        trained: What of the model is the server's, and its updates of sites that are done.
    """

    def __init__(self, run: Run, number: int, progress: Progress, num_participants: int) -> None:
        make_arithmetic_repeatable(run.study)
        self._study, self._number = run.study, number
        self._conversation = run.strategy.conversation
        self._device = _device(run.study)
        self._network = _network(progress, self._device)
        self._weights = progress.weights
        self._parts = cut(self._network, run.study)
        self.trained = TrainedHere(frozenset(self._parts.middle.names))
        # Classification: outputs do not depend on words.
        shapes = cut_shapes(run.study, make_task(run.study).num_outputs)
        self._shapes: dict[str, Shape] = dict(zip((ACTIVATIONS, GRADIENT), shapes, strict=True))
        self._most_images = run.study.training.batch_size * run.study.augmentation.multiplicity
        self._contents = self._conversation.split_contents(number, num_participants)
        self._by_node: dict[int, _Middle] = {}

    @property
    def most_bytes(self) -> float:
        """Most bytes of what a site sends for one batch."""
        return 4.0 * self._most_images * max(map(math.prod, self._shapes.values()))

    def begin(self, sites: Sequence[Participant]) -> list[Message]:
        """Return what each site begins from, and put on record what that is."""
        names = set(self._parts.at_site)
        own = {name: array for name, array in self._weights.items() if name in names}
        conversation, sha256 = self._conversation, digest(own)
        for site in sites:
            conversation.round_of(site.name).start_sha256 = sha256
            model = copy.deepcopy(self._network)
            middle = cut(model, self._study).middle
            part = TrainedPart(model, middle, self._study.training, self._device)
            self._by_node[site.node_id] = _Middle(site, model, part)
        return conversation.address(
            messages.SPLIT_FRONT,
            self._number,
            sites,
            lambda site: self._contents(0, own, conversation.countersignatures.get(site.name, "")),
        )

    def updates(self, replies: Iterable[Message], exchange: Exchange) -> Iterator[Message]:
        """Go on with each site as it answers, and yield the messages that end its round."""
        for message in replies:
            node = message.metadata.src_node_id
            if messages.kind_of(message.content) in self._shapes:
                exchange.push(self._next(message, node))
            elif self._may_end(message, node):
                yield message
            del message  # or it is held while the next is fetched

    def _next(self, message: Message, node: int) -> list[Message]:
        """Return what a site is asked after half a step; nothing if it cannot go on."""
        this = self._by_node[node]
        reply = self._opened(message, this.site.name)
        if reply is not None:
            try:
                kind, content = self._take(this, reply)
                return self._conversation.address(
                    kind, self._number, [this.site], lambda _: content
                )
            except UpdateError as error:
                self._conversation.reject(this.site.name, str(error))
        del self._by_node[node]
        return []

    def _opened(self, message: Message, name: str) -> SplitReply | None:
        """Return what a site sent; None if it is too large or cannot be read, which is noted."""
        num_bytes, kind = messages.num_bytes(message.content), messages.kind_of(message.content)
        shape = (self._most_images, *self._shapes[kind])
        try:
            screen_size(num_bytes, {kind: np.broadcast_to(np.zeros((), np.float32), shape)})
        except UpdateError as error:
            self._conversation.round_of(name).bytes_up += num_bytes
            self._conversation.reject(name, str(error))
            return None
        for _, reply in self._conversation.opened([message]):
            assert isinstance(reply, SplitReply)  # by its kind
            return reply
        return None

    def _take(self, this: _Middle, reply: SplitReply) -> tuple[str, RecordDict]:
        """Return what to answer to a site's activations or gradient.

        Raises:
            UpdateError: It is not its turn, or not what a batch can give.
        """
        if reply.name != this.awaits:
            raise UpdateError(f"Expected {this.awaits} in step {this.step}, got {reply.name}.")
        array, shape = reply.array, self._shapes[reply.name]
        if reply.name == ACTIVATIONS:
            steps = self._study.training.local_steps
            if steps is not None and this.step >= steps:
                raise UpdateError(f"Expected an update after {steps} steps, got activations.")
            screen_batch(array, shape, most=self._most_images)
            this.entered = to_tensor(array, this.model, self._device).requires_grad_()
            this.left = this.part(this.entered)
            this.awaits = "gradient"
            features = _finite(to_array(this.left))
            return messages.SPLIT_BACK, self._contents(this.step, {FEATURES: features})
        assert this.entered is not None
        assert this.left is not None  # both are of the activations
        screen_batch(array, shape, most=len(this.left), least=len(this.left))
        this.part.step(this.left, to_tensor(array, this.model, self._device))
        assert this.entered.grad is not None
        gradient = _finite(to_array(this.entered.grad))
        this.entered = this.left = None
        this.step, this.awaits = this.step + 1, "activations"
        return messages.SPLIT_FRONT, self._contents(this.step, {GRADIENT: gradient})

    def _may_end(self, message: Message, node: int) -> bool:
        """Whether a site's round may end with this message; its middle's update is then there."""
        this = self._by_node.pop(node)
        if messages.kind_of(message.content) != "update":
            return True  # for the strategy to say what is wrong
        steps = self._study.training.local_steps
        if this.awaits != "activations" or this.step < (1 if steps is None else steps):
            name = this.site.name
            self._conversation.round_of(name).bytes_up += messages.num_bytes(message.content)
            self._conversation.reject(
                name, f"Expected {this.awaits} in step {this.step}, got an update."
            )
            return False
        start = {name: self._weights[name] for name in this.part.names}
        self.trained.updates[this.site.name] = difference(this.part.weights(), start)
        return True


def _finite(array: Array) -> Array:
    if not np.isfinite(array).all():
        raise UpdateError("The server's part of the network gives NaN or infinite values now.")
    return array


def _device(study: StudyConfig) -> torch.device:
    device = device_for(study.compute.device)
    if device is None:
        raise RunError(
            'Expected a GPU at the server for compute.device = "cuda" with split learning, found '
            'none. Set compute.device = "auto" or "cpu".'
        )
    return device


def _network(progress: Progress, device: torch.device) -> nn.Module:
    """Return the global model as sites have it."""
    network = copy.deepcopy(progress.model)
    write_state(network, progress.weights)
    if device.type == "cpu":
        lay_out_for_cpu(network)
    set_training_mode(network)
    return network.to(device)
