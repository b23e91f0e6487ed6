"""What each patient of a batch contributes to the figures, from one pass of the model."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.common.metrics import MetricSums
from medfed.common.tasks.classification import Classification
from medfed.common.tasks.protocol import Batch, Task
from medfed.common.tasks.report import Report
from medfed.common.tasks.segmentation import Segmentation

_OWN: tuple[type[Classification] | type[Segmentation] | type[Report], ...] = (
    Classification,
    Segmentation,
    Report,
)


def evaluate_apart(
    task: Task, model: nn.Module, batch: Batch, groups: Sequence[npt.NDArray[np.int64]]
) -> list[MetricSums]:
    """Return the sums of each group of a batch's images; together they are `task.evaluate`'s.

    A plug-in's task that evaluates in its own way sees a group at a time.

    Args:
        task: What the model is trained to do.
        model: In evaluation mode.
        batch: Images of several patients.
        groups: Where in the batch each patient's images are.
    """
    for own in _OWN:
        if isinstance(task, own) and type(task).evaluate is own.evaluate:
            return task.evaluate_apart(model, batch, groups)
    return [task.evaluate(model, _part(batch, torch.from_numpy(rows))) for rows in groups]


def _part(batch: Batch, rows: torch.Tensor) -> Batch:
    return Batch(tuple(part[rows] for part in batch.inputs), batch.targets[rows])
