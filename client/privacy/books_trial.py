"""Tries book-keeping on made-up images before a plug-in's network is trained by it.

A class that says `images_apart = True` promises that its network mixes no images. Book-keeping
counts on a little more: that the first dimension of what a layer is called with are the images. A
layer over the words of all images side by side ([T, N, D]), or over what is the same for all images
(positions, queries), mixes nothing, but its rows would be counted to the wrong patients, and the
bound on each would fail without a sound. So would a weight that two kinds of layers share.

A test, no proof, as `common.plugins.apart` is.
"""

import math

import torch
from torch import Tensor, nn

from medfed.client.privacy.book_keeping import BookKeeping, keeps_books
from medfed.client.privacy.clipping import PatientBatch, clipped_sums
from medfed.client.privacy.dp_sgd import patient_gradients
from medfed.common.plugins.apart import made_up, refused, told
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task

_TOLERANCE = 1e-3
_NUM_PATIENTS, _NUM_IMAGES = 2, 2


def check_books(model: nn.Module, task: Task, study: StudyConfig) -> None:
    """Refuse a network for which book-keeping gives another sum than gradients by patient.

    Args:
        model: As built for `study`, in training mode; its weights stay as they are.
        task: The study's task.
        study: With privacy at the sites.

    Raises:
        StudyError: Says which plug-in, what it does, and the way out.
    """
    if not keeps_books(model):
        return
    batch = _patients(task, study, next(model.parameters()).device)
    with told(study):
        gradients = list(patient_gradients(model, task.loss_per_image, batch).values())
        # Shorter than they are, so that a wrong norm shows.
        bound = float(torch.cat([part.flatten(1) for part in gradients], dim=1).norm(dim=1).mean())
        expected = _flat(clipped_sums(gradients, bound / 2, "flat"))
    books = BookKeeping(model, task.loss_per_image, bound / 2, "flat")
    try:
        off = float((_flat(list(books(batch).values())) - expected).norm())
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError):  # rows that no number of patients divides
        off = math.inf
    if not off <= _TOLERANCE * bound + 1e-7:  # NaN included
        raise refused(
            study,
            "says images_apart = True, and the gradients of one patient would be counted to "
            "another: its layers must be called with the images in the first dimension, and share "
            "no weights. Without images_apart it is trained all the same, only slower",
        )


def _patients(task: Task, study: StudyConfig, device: torch.device) -> PatientBatch:
    inputs, targets = made_up(task, study, device)
    shape = (_NUM_PATIENTS, _NUM_IMAGES)
    whole = _NUM_PATIENTS * _NUM_IMAGES

    def by_patient(part: Tensor) -> Tensor:
        return part[:whole].reshape(*shape, *part.shape[1:])

    mask_PK = torch.ones(shape, device=device)
    return PatientBatch(tuple(map(by_patient, inputs)), by_patient(targets), mask_PK)


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
