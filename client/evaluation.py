"""Evaluates a model on a site's held-out images. Returns sums, never figures of one image."""

import torch
from torch import nn

from medfed.client.data.site_data import ImageSet
from medfed.client.training import Round, to_model
from medfed.common.metrics import MetricSums, add_sums
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.tasks import Task


def evaluate(
    model: nn.Module, weights: StateDict, data: ImageSet, task: Task, this: Round
) -> MetricSums:
    """Return the task's metric sums of `weights` over all images of `data`."""
    write_state(model, weights)
    model.eval()
    labels = data.labels
    targets = task.targets(labels)
    size = this.study.evaluation.batch_size
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data), size):
            chosen = torch.arange(start, min(start + size, len(data)))
            images = to_model(data.images_NCHW(chosen.numpy()), this.study.data, this.device)
            outputs = model(images)
            parts.append(
                task.sums(outputs, targets[chosen].to(this.device), labels[chosen.numpy()])
            )
    return add_sums(parts)
