"""Networks by the study's `model.name`."""

import threading
from collections.abc import Callable

import torch
from torch import nn

from medfed.common.models.cnn import Cnn
from medfed.common.models.monai_networks import densenet121, resnet18, resnet50
from medfed.common.seeding import derive_seed
from medfed.common.study import StudyConfig

Builder = Callable[[StudyConfig, int], nn.Module]

_BUILDERS: dict[str, Builder] = {
    "cnn": lambda study, outputs: Cnn(study.data.channels, study.data.image_size, outputs),
    "densenet121": densenet121,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


_seeding = threading.Lock()


def build_model(study: StudyConfig, num_outputs: int) -> nn.Module:
    """Return the study's network with weights that depend on the study's seed only.

    The process-wide random state is left as it was.
    """
    # The random state is the process': two threads must not seed it at once.
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(study.study.seed, "initial weights"))
        return _BUILDERS[study.model.name](study, num_outputs)
