"""Where a run stands: what the next round starts from, and what is published of it."""

from dataclasses import dataclass, field

from flwr.app import ArrayRecord
from torch import nn

from medfed.common import messages
from medfed.common.models import build_model, shared_state, trained_parameters
from medfed.common.state_dicts import StateDict, digest
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task
from medfed.server.aggregation.averaging import as_weights, moving_average
from medfed.server.aggregation.fedopt import Moments, server_step
from medfed.server.checkpoint import Checkpoint
from medfed.server.records import ArmFolder


@dataclass
class Progress:
    """The state of a run between two rounds.

    Attributes:
        model: Holds what does not travel; what does is in `weights`.
        arrays: `weights`, packed.
        weights: What trains and travels, after the last round: sites go on from it.
        round_number: The last complete round.
        average: Moving average of `weights` over the rounds, in float64; None without.
        moments: Of the server's optimiser (`aggregation.fedopt`); empty without.
    """

    model: nn.Module
    arrays: ArrayRecord
    weights: StateDict
    round_number: int
    average: StateDict | None = None
    moments: Moments = field(default_factory=dict)

    def advance(self, arrays: ArrayRecord, study: StudyConfig) -> None:
        """Take what the next round's updates were combined to; the server's optimiser steps by it.

        Only now: a round that is repeated must not move it twice.
        """
        weights = messages.unpack_arrays(arrays)
        if study.federation.optimises_on_server:
            weights, self.moments = server_step(
                study.federation,
                self.weights,
                weights,
                self.moments,
                frozenset(trained_parameters(self.model)),
            )
            arrays = messages.pack_arrays(weights)
        self.arrays, self.weights = arrays, weights
        self.round_number += 1
        decay = study.federation.ema_decay
        if decay:
            self.average = moving_average(self.average, self.weights, decay, self.round_number)

    @property
    def published(self) -> StateDict:
        """The weights that are evaluated and published: their average, if the study asks for it."""
        return self.weights if self.average is None else as_weights(self.average, self.weights)

    @property
    def published_arrays(self) -> ArrayRecord:
        """`published`, packed."""
        return self.arrays if self.average is None else messages.pack_arrays(self.published)

    @property
    def average_sha256(self) -> str:
        """Digest of the published average; empty without."""
        return "" if self.average is None else digest(self.published)


def resume(
    study: StudyConfig, words: tuple[str, ...], checkpoint: Checkpoint | None, arm: ArmFolder
) -> Progress:
    """Return where the arm stands, and bring its round records in line with the checkpoint."""
    model = build_model(study, make_task(study, words).num_outputs)
    if checkpoint is None:
        weights = shared_state(model, study)
        arm.rewrite_rounds([])
        return Progress(model, messages.pack_arrays(weights), weights, 0)
    last = checkpoint.record
    # The record of the last round may be missing or torn: the checkpoint has it whole.
    earlier = [r for r in arm.read_rounds() if r.round_number < last.round_number]
    arm.rewrite_rounds([*earlier, last])
    return Progress(
        model,
        messages.pack_arrays(checkpoint.weights),
        checkpoint.weights,
        last.round_number,
        checkpoint.average,
        dict(checkpoint.states) if study.federation.optimises_on_server else {},
    )
