"""`[training]`, `[evaluation]`, `[compute]`: what a round is made of."""

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Fraction, PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig


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

    def steps_for(self, num_examples: int | None) -> int:
        """Return the optimiser steps that a site without DP takes in a round.

        Args:
            num_examples: Its training images; may be None where local_steps is set.
        """
        if self.local_steps is not None:
            return self.local_steps
        if num_examples is None or self.local_epochs is None:
            raise ValueError("Expected the number of images: passes over them are counted.")
        return self.local_epochs * math.ceil(num_examples / self.batch_size)


class EvaluationSection(Section):
    """`[evaluation]`: the held-out split."""

    every: PositiveInt = 1
    """Evaluate after every so many rounds; the last round always."""
    fraction: Fraction = 1.0
    """Share of the sites that evaluates then, drawn anew each time; after the last round all do."""
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
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: layers of a training step multiply numbers of 8 binary digits in place of 24;
    weights, optimiser, losses and all figures stay float32. Faster where the hardware has it: GPUs
    from Ampere on, processors with AMX. Not with privacy.unit patient or record."""


def check_precision(study: "StudyConfig") -> None:
    """Refuse bfloat16 where something counts on exact numbers.

    Raises:
        ValueError: With the reason and the way out.
    """
    if study.compute.precision == "float32":
        return
    asked = f'compute.precision = "{study.compute.precision}"'
    if study.privacy.at_sites:
        raise ValueError(
            f'{asked} with privacy.unit = "{study.privacy.unit}": what bounds a patient counts on '
            "norms of gradients that are right to seven digits. Remove it, or set privacy.unit = "
            '"none", or "site", which bounds whole updates.'
        )
    if study.federation.algorithm == "split":
        raise ValueError(
            f'{asked} with federation.algorithm = "split", whose parts at sites and server compute '
            "in float32. Remove one of the two."
        )
