"""Evaluates a model on a site's held-out images. Returns sums, never figures of one image."""

import numpy as np
import torch
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.client.training import Round
from medfed.common.metrics import MetricSums, add_sums
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.tasks import Task


def evaluate(
    model: nn.Module, weights: StateDict, data: ImageSet, task: Task, this: Round
) -> MetricSums:
    """Return the task's metric sums of `weights` over all images of `data`."""
    write_state(model, weights)
    model.eval()
    loader = BatchLoader(data, task, this.study, this.device)
    # Images that keep their own size come one at a time, each in windows.
    size = this.study.evaluation.batch_size if this.study.data.fit == "resize" else 1
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data), size):
            chosen = np.arange(start, min(start + size, len(data)))
            parts.append(task.evaluate(model, loader.evaluation_batch(chosen)))
    return add_sums(parts)
