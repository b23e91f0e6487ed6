"""What the entry points of a plug-in's package name: its settings, and what makes the thing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import nn

from medfed.common.study import Section, StudyConfig
from medfed.common.tasks.protocol import Task

Options = TypeVar("Options", bound=Section)


class Plugin(Protocol):
    """What plug-ins of every kind have."""

    @property
    def options(self) -> type[Section]:
        """The plug-in's own settings: defaults, bounds, and what each means."""
        ...


@dataclass(frozen=True)
class NetworkShape:
    """What a network takes and gives.

    Attributes:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of an image, those of all views together.
        image_size: Length of each side.
        num_outputs: Logits an image (classification) or a pixel (segmentation, at the image's own
            size).
    """

    spatial_dims: int
    in_channels: int
    image_size: int
    num_outputs: int

    @staticmethod
    def of(study: StudyConfig, num_outputs: int) -> "NetworkShape":
        """Return the shape that `study` asks for."""
        data = study.data
        return NetworkShape(data.dimensions, data.total_channels, data.image_size, num_outputs)


@dataclass(frozen=True)
class ModelPlugin(Generic[Options]):
    """A network; its entry point is in the group `medfed.models`.

    `build` draws first weights from torch's global random state alone, which the study seeds. For
    `model.freeze = "backbone"` the network has an attribute `head`: names of its last layer(s); for
    `medfed explain` a classifier has a method `grid`, from images to its last feature map.
    Under differential privacy one image's output must not depend on the others of its batch.
    `images_apart = True` on the network's class promises that, and that every layer is called with
    the images in the first dimension: private steps are then as fast as those of medfed's own.

    Attributes:
        options: What `[model.options]` may hold.
        build: From these and the shape to the network: images [B, C, *S] to logits.
    """

    options: type[Options]
    build: Callable[[Options, NetworkShape], nn.Module]


@dataclass(frozen=True)
class TaskPlugin(Generic[Options]):
    """A task; its entry point is in the group `medfed.tasks`.

    What it makes may extend `Classification` or `Segmentation`, and then has all of the report, or
    be any other `Task`, and then has curves and tables.

    Attributes:
        options: What `[task.options]` may hold.
        make: From these and the study to the task.
    """

    options: type[Options]
    make: Callable[[Options, StudyConfig], Task]
