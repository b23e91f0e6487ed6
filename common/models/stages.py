"""A network as stages in order, and the three parts that split learning cuts it into.

    front    the first `federation.front_stages` stages     at the site
    middle   the stages between                             at the server
    back     the last stage: the final classifier           at the site

Each of medfed's classifiers says what its stages are; one after the other they are its `forward`,
to the bit. None of them drops anything at random, and what a BatchNorm keeps belongs to the part
that it is in. A U-Net has no stages: its skip connections would cross every cut.

References: Vepakomma et al. 2018, https://arxiv.org/abs/1812.00564 (the cut after which no label
leaves); Thapa et al. 2022, https://arxiv.org/abs/2004.12088 (sites in parallel)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.models.freezing import trained_names
from medfed.common.study import StudyConfig

Shape = tuple[int, ...]


class Stage(NamedTuple):
    """What a network does between two places at which it can be cut.

    Attributes:
        modules: Names of the modules that it uses.
        run: From the features [B, ...] before it to those after it.
    """

    modules: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


def modules_in_turn(model: nn.Module, *names: str) -> Stage:
    """Return the stage that calls one module of `model` after the other."""

    def run(features: Tensor) -> Tensor:
        for name in names:
            features = model.get_submodule(name)(features)
        return features

    return Stage(names, run)


class Part:
    """Consecutive stages of a network.

    Attributes:
        names: What of them trains, statistics included, in the state's order.
        parameters: What of them has gradients, by name.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        prefixes = tuple(f"{module}." for stage in stages for module in stage.modules)
        self.names = tuple(n for n in trained_names(model) if n.startswith(prefixes))
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith(prefixes)
        }

    def __call__(self, features: Tensor) -> Tensor:
        """Return what the last stage makes of the images, or of the part before."""
        for stage in self._stages:
            features = stage.run(features)
        return features


class Parts(NamedTuple):
    """A network that was cut."""

    front: Part
    middle: Part
    back: Part

    @property
    def at_site(self) -> tuple[str, ...]:
        """Names of what a site trains."""
        return (*self.front.names, *self.back.names)


def cut(model: nn.Module, study: StudyConfig) -> Parts:
    """Return the parts of `model`, which stay parts of it.

    Raises:
        StudyError: It has no stages, or too few, or nothing trains in one of the parts.
    """
    depth = study.federation.front_stages
    assert depth is not None  # FederationSection writes it out with split
    stages = stages_of(model)
    most = len(stages) - 2
    if depth > most:
        raise StudyError(
            f"federation.front_stages = {depth} leaves nothing of the {study.model.name} to the "
            f'server: expected at most {most}. Lower it, or set federation.algorithm = "fedavg".'
        )
    parts = Parts(
        Part(model, stages[:depth]), Part(model, stages[depth:-1]), Part(model, stages[-1:])
    )
    for name, part in zip(Parts._fields, parts, strict=True):
        if not part.parameters:
            raise StudyError(
                f'federation.algorithm = "split" with a {name} in which nothing trains: no '
                "gradient would pass there. Change model.freeze, or set federation.algorithm = "
                '"fedavg".'
            )
    return parts


def stages_of(model: nn.Module) -> tuple[Stage, ...]:
    """Return the stages of a network.

    Raises:
        StudyError: It has none.
    """
    stages: Callable[[], tuple[Stage, ...]] | None = getattr(model, "stages", None)
    if stages is None:
        raise StudyError(
            f'federation.algorithm = "split": expected a network of stages, got '
            f"{type(model).__name__}, which has none. Set model.name to one of medfed's "
            'classifiers, or federation.algorithm = "fedavg".'
        )
    return stages()


def shapes_at_cuts(model: nn.Module, study: StudyConfig) -> tuple[Shape, Shape]:
    """Return the shapes, for one image, of what the front and the middle of `model` put out.

    Args:
        model: On torch's meta device: nothing is computed.
        study: Says what an image is.
    """
    data = study.data
    image = torch.empty(
        (1, data.total_channels, *[data.image_size] * data.dimensions), device="meta"
    )
    parts = cut(model.eval(), study)
    front = parts.front(image)
    return tuple(front.shape[1:]), tuple(parts.middle(front).shape[1:])
