"""Real updates of one patient's image, from the trainer that is installed, as a server sees them.

One step of plain gradient descent at rate 1 on one image: its update is minus the image's gradient,
after clipping and noise where the study has them. This is the most that a round can show of one
patient; more patients and more steps mix into it and show less. Against a server that knows
everyone else's data, which is whom differential privacy defends against, it is also what is left
after taking the others off.

Shapes: P parameters that train, all as one row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.common.models import set_training_mode
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict, read_state, write_state
from medfed.common.study import PrivacySection, StudyConfig
from medfed.common.tasks import Batch, Task
from medfed.simulations.auditing.attacks.units import subset

_CPU = torch.device("cpu")
_SITE = "attacked"


@dataclass(frozen=True)
class Target:
    """A network with known weights and the images that may have been trained on.

    Attributes:
        model: The study's network.
        weights: What the server sent out, here the weights of the first round.
        images: One image of each candidate.
        task: The study's.
        study: The study as `one_step` made it.
    """

    model: nn.Module
    weights: StateDict
    images: ImageSet
    task: Task
    study: StudyConfig

    @staticmethod
    def of(model: nn.Module, images: ImageSet, task: Task, study: StudyConfig) -> "Target":
        """Return the target that starts from the weights that `model` has."""
        return Target(model, read_state(model), images, task, one_step(study))


def one_step(study: StudyConfig) -> StudyConfig:
    """Return the study with one step of gradient descent at rate 1 and no augmentation."""
    training = study.training.model_copy(
        update={
            "rounds": 1,
            "local_epochs": None,
            "local_steps": 1,
            "batch_size": 1,
            "optimizer": "sgd",
            "learning_rate": 1.0,
            "momentum": 0.0,
            "weight_decay": 0.0,
        }
    )
    # Its unit is always in the sample, and the sum is divided by 1.
    privacy = study.privacy.model_copy(update={"sample_rate": 1.0, "expected_batch_size": 1.0})
    plain = type(study.augmentation)()
    return study.model_copy(
        update={"training": training, "privacy": privacy, "augmentation": plain}
    )


def plain_update(target: Target, candidate: int) -> Tensor:
    """Return the update [P] of one candidate's image, trained without privacy, sign turned."""
    study = target.study.model_copy(update={"privacy": PrivacySection(unit="none")})
    this = Round(study, _SITE, 1, _CPU)
    one = subset(target.images, np.array([candidate]))
    result = train_without_privacy(target.model, target.weights, one, target.task, this)
    return _flat(result.update, target.model)


def private_update(target: Target, candidate: int, draw: int, seed: int) -> Tensor:
    """Return the same trained with the study's clipping and noise; `draw` numbers the noise."""
    own = target.study.study.model_copy(update={"seed": seed})
    study = target.study.model_copy(update={"study": own})
    one = subset(target.images, np.array([candidate]))
    result = train_with_privacy(
        target.model,
        target.weights,
        one,
        target.task,
        Round(study, f"{_SITE}-{candidate}", 1 + draw, _CPU),
        seeded=True,
        public_num_patients=None,
    )
    return _flat(result.update, target.model)


def batch_of(target: Target, candidate: int) -> Batch:
    """Return what the network was called with for a candidate, patch included."""
    loader = BatchLoader(
        subset(target.images, np.array([candidate])), target.task, target.study, _CPU
    )
    # The stream of the trainer: where patches lie is no secret.
    views = numpy_rng(target.study.study.seed, "views", 1, _SITE)
    return loader.training_batch(np.array([0]), views)


def gradient(target: Target, batch: Batch, *, differentiable: bool = False) -> Tensor:
    """Return the gradient [P] of a batch of one at the known weights."""
    trainable = [p for p in target.model.parameters() if p.requires_grad]
    losses_B = target.task.loss_per_image(target.model(*batch.inputs), batch.targets)
    parts = torch.autograd.grad(losses_B.mean(), trainable, create_graph=differentiable)
    return torch.cat([part.flatten() for part in parts])


def restore(target: Target) -> None:
    """Put the known weights back into the network, as a step starts with them."""
    write_state(target.model, target.weights)
    set_training_mode(target.model)


def cosines(update_P: Tensor, gradients_NP: Tensor) -> Tensor:
    """Return the cosine of an update with each candidate's gradient, [N]."""
    return torch.nn.functional.cosine_similarity(update_P[None], gradients_NP, dim=1)


def _flat(update: StateDict, model: nn.Module) -> Tensor:
    """Minus the update of the parameters that train, in the model's order."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return -torch.cat([torch.from_numpy(np.array(update[name])).flatten() for name in names])
