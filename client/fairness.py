"""q-FedAvg at a site: the loss of the global weights over its training images, before training.

Reference: Li et al. 2019 (q-FFL), https://arxiv.org/abs/1905.10497, algorithm 2
"""

import numpy as np
import torch
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task


def loss_of(
    model: nn.Module,
    data: ImageSet,
    task: Task,
    study: StudyConfig,
    device: torch.device,
    *,
    names: tuple[int, str],
) -> float:
    """Return the mean loss of `model`, in evaluation mode, over all images of `data`.

    Images are whole and as they are; with data.fit = "patch", one patch of each as training has it.

    Args:
        model: With the weights to judge; its mode is changed.
        data: The site's training images.
        task: Loss of an image.
        study: Preprocessing, and how many images at a time.
        device: Where the network is.
        names: Round and site, which the patches are drawn by.
    """
    model.eval()
    loader, patches = BatchLoader(data, task, study, device), study.data.fit == "patch"
    rng = numpy_rng(study.study.seed, "patches of the loss", *names)
    size = study.training.batch_size if patches else study.evaluation.batch_size
    total = torch.zeros((), device=device, dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(data), size):
            chosen = np.arange(start, min(start + size, len(data)))
            batch = (
                loader.training_batch(chosen, rng) if patches else loader.evaluation_batch(chosen)
            )
            losses_B = task.loss_per_image(model(*batch.inputs), batch.targets)
            total += losses_B.double().sum()
    return float(total) / len(data)
