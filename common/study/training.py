"""`[training]`, `[federation]`, `[evaluation]`, `[compute]`: what a round is made of."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Fraction, PositiveFloat, PositiveInt, Section


class TrainingSection(Section):
    """`[training]`: what a site does in one round."""

    rounds: PositiveInt = 10
    """Federated rounds."""
    batch_size: PositiveInt = 32
    """Images a step without DP; under DP the batch is Poisson and this is unused."""
    local_epochs: PositiveInt | None = None
    """Passes over the site's images a round (without DP). Give this or local_steps."""
    local_steps: PositiveInt | None = None
    """Optimiser steps a round. Required under DP, where passes would reveal the private count."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Local optimiser, fresh every round."""
    learning_rate: PositiveFloat = 0.05
    """Step size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError(
                "expected exactly one of local_epochs and local_steps, got "
                + ("neither" if self.local_epochs is None else "both")
                + ". Set training.local_epochs = 1, or training.local_steps under DP."
            )
        return self


class FederationSection(Section):
    """`[federation]`: who takes part and how updates are combined."""

    algorithm: Literal["fedavg"] = "fedavg"
    """Aggregation rule."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Evaluate and publish an exponential moving average of the global weights, which smooths the
    noise of DP; 0.9 averages about ten rounds, 0 is off. Sites go on from the latest weights."""
    weighting: Literal["auto", "examples", "uniform", "public"] = "auto"
    """A site's weight: its number of training images; one; or the public_num_patients that its
    site.toml states (one each where a site states none). Under DP the true count is private, so
    examples is refused; auto is examples without DP and public with it."""
    fraction: Fraction = 1.0
    """Share of the joined sites that takes part in each round. With privacy.unit = "site" each
    site is drawn with this probability, alone, as amplification by sampling needs it."""
    min_sites: PositiveInt = 2
    """Quorum: sites that must join before round 1, and answer in every round."""
    join_timeout_s: PositiveFloat = 600.0
    """How long the server waits for min_sites to join, seconds."""
    rejoin_timeout_s: PositiveFloat = 600.0
    """How long a run waits, between rounds, for min_sites to be connected and not paused, seconds;
    then it fails and can be resumed."""
    round_timeout_s: PositiveFloat = 3600.0
    """Deadline of a round, seconds; it completes with the sites that answered by then."""
    lost_after_s: PositiveFloat = 120.0
    """A site that has been disconnected for so many seconds is not waited for in this round, once
    min_sites have answered. Flower notices a lost connection after up to a minute."""


class EvaluationSection(Section):
    """`[evaluation]`: the held-out split."""

    every: PositiveInt = 1
    """Evaluate after every so many rounds; the last round always."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each site's patients held out where the data set has no official split."""
    batch_size: PositiveInt = 128
    """Images a forward pass; with data.fit = "patch", windows a forward pass."""
    window_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """With data.fit = "patch": share of a window that it has in common with the next."""
    surface_tolerance: PositiveFloat = 2.0
    """Surface Dice counts surfaces closer than this as equal: mm where data.spacing_mm is set,
    else pixels."""


class ComputeSection(Section):
    """`[compute]`: arithmetic that must be the same everywhere for bit-equal results."""

    threads: PositiveInt = 1
    """CPU threads of one site's training step."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where a site trains unless its site.toml says otherwise; auto takes a GPU if there is one."""
    cuda_graphs: bool = True
    """On a GPU: record a training step once and replay it. The results are the same bits, sooner;
    the memory of a step stays taken between rounds."""
