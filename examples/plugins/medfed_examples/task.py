"""A task: classification by the focal loss, which makes little of images that are easy.

Reference: Lin et al. 2017, https://arxiv.org/abs/1708.02002 (equation 4)
"""

from pydantic import Field
from torch import Tensor

from medfed.common.plugins import Section, TaskPlugin
from medfed.common.study import StudyConfig
from medfed.common.tasks import Classification


class Options(Section):
    """`[task.options]`."""

    gamma: float = Field(default=2.0, ge=0)
    """How little; 0 is cross entropy."""


class Focal(Classification):
    """Figures, prediction and report are those of classification; the loss is not."""

    def __init__(self, options: Options, study: StudyConfig) -> None:
        super().__init__(study)
        self._gamma = options.gamma

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B]. No image's loss may depend on another image: privacy needs that."""
        entropy = super().loss_per_image(outputs, targets)
        return (1 - (-entropy).exp()) ** self._gamma * entropy


focal = TaskPlugin(Options, Focal)
