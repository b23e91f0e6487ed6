"""Whether a plug-in's network and task work together: tried on made-up images when a study starts.

What does not fit would otherwise show at a site in the middle of a round, or in the report after
the last one.
"""

import numpy as np
import torch
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.metrics import MetricSums
from medfed.common.models.freezing import set_training_mode
from medfed.common.plugins.apart import made_up, plugins_of
from medfed.common.plugins.loading import blaming
from medfed.common.study import StudyConfig
from medfed.common.tasks import is_own_task, pooled_metrics
from medfed.common.tasks.protocol import Batch, Task

# The least that a normalisation over the batch can train on.
_NUM_IMAGES = 2


def check_together(model: nn.Module, task: Task, study: StudyConfig) -> None:
    """Train on made-up images and judge them, once, as a site would.

    Args:
        model: As built for `study`; its buffers may change.
        task: The study's task.
        study: One of them is a plug-in's.

    Raises:
        StudyError: What goes wrong, and whose it is.
    """
    whose = f"plug-in {plugins_of(study)}"
    device = next(model.parameters()).device
    inputs, targets = made_up(task, study, device, _NUM_IMAGES)
    set_training_mode(model)
    with blaming(whose), torch.random.fork_rng(devices=[]):
        outputs = model(*inputs)
        if is_own_task(task, study):
            _check_outputs(outputs, task, study, whose)
        losses_B = task.loss_per_image(outputs, targets)
    if _shape(losses_B) != (_NUM_IMAGES,):
        raise _to_mend(whose, f"expected one loss an image, got {_shape(losses_B)}")
    if not losses_B.requires_grad:
        raise _to_mend(whose, "expected a loss with a gradient, got one that is detached")
    model.eval()
    with blaming(whose), torch.inference_mode():
        sums = task.evaluate(model, Batch(inputs, targets))
        _check_sums(sums, task, whose)
        pooled_metrics(task, [sums])


def _check_outputs(outputs: object, task: Task, study: StudyConfig, whose: str) -> None:
    """Hold a network to what a task of medfed's own, or one that extends it, takes."""
    expected: tuple[int, ...] = (_NUM_IMAGES, task.num_outputs)
    if study.task.type == "segmentation":
        expected += (study.data.image_size,) * study.data.dimensions
    if _shape(outputs) != expected:
        raise _to_mend(
            whose, f"expected outputs {expected} for {_NUM_IMAGES} images, got {_shape(outputs)}"
        )


def _check_sums(sums: MetricSums, task: Task, whose: str) -> None:
    """Hold what an evaluation gives to what the server lets through."""
    got, said = {name: np.shape(array) for name, array in sums.items()}, task.sum_shapes()
    if got != said:
        raise _to_mend(whose, f"evaluate gives sums of shapes {got}, sum_shapes says {said}")
    if got.get("count") != ():
        raise _to_mend(whose, 'expected a sum "count" of shape (), the number of images')
    others = [name for name, array in sums.items() if array.dtype != np.int64]
    if others:
        raise _to_mend(
            whose,
            f"expected sums of int64, got others for {', '.join(others)}; "
            "medfed.common.metrics.fixed makes them of real numbers",
        )
    unknown = {name for names in task.families.values() for name in names} - set(said)
    if unknown:
        raise _to_mend(whose, f"families names {', '.join(sorted(unknown))}, which is no sum")


def _to_mend(whose: str, what: str) -> StudyError:
    return StudyError(f"The {whose}: {what}. That is for the package's authors to mend.")


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
