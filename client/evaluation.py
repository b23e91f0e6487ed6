"""Evaluates a model on a site's held-out images, as far as the site's policy lets sums leave.

Never figures of one image. What too few patients show is not counted at all: where a class is
suppressed by hiding its row of a table, the other rows and the total give it away.

Shapes: N images, L labels, G groups of images.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.client.site import PolicySection
from medfed.client.training import Round
from medfed.common.metrics import MetricSums, add_sums, of_families
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.tasks import Task
from medfed.common.text import tokenise


@dataclass(frozen=True)
class Evaluation:
    """What leaves, and what does not.

    Attributes:
        sums: The families of sums that the policy lets out; None if there are none.
        withheld: What stays and why, for the site's own release list.
    """

    sums: MetricSums | None
    withheld: dict[str, str]


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


def evaluate_for_release(
    model: nn.Module,
    weights: StateDict,
    data: ImageSet,
    task: Task,
    this: Round,
    policy: PolicySection,
) -> Evaluation:
    """Return those of the task's metric sums that `policy` lets out."""
    if not policy.release_evaluation:
        return Evaluation(None, {"evaluation": "policy.release_evaluation is off"})
    families = [
        name
        for name in task.families
        if not policy.release_metrics or name in policy.release_metrics
    ]
    withheld = {
        name: "not in policy.release_metrics" for name in task.families if name not in families
    }
    least = policy.min_patients_per_count
    kept = countable_images(data, least)
    counted = data
    if len(kept) < len(data):
        counted = ImageSet(data.stores, data.store_index[kept], data.row_index[kept])
        withheld["images of rare labels"] = (
            f"they show or lack what fewer than {least} patients do (policy.min_patients_per_count)"
        )
    if len(set(counted.patients)) < least:
        why = f"fewer than {least} held-out patients (policy.min_patients_per_count)"
        return Evaluation(None, {"evaluation": why})
    if not families:
        return Evaluation(None, withheld)
    sums = evaluate(model, weights, counted, task, this)
    return Evaluation(of_families(sums, task.families, families), withheld)


def countable_images(data: ImageSet, min_patients: int) -> npt.NDArray[np.int64]:
    """Return the positions of images that show, and lack, only what `min_patients` or more do.

    Leaving an image out takes its patient from everything else that the image shows, so it goes on
    until nothing is rare. Images of reports without words are no part of an evaluation, nor here.
    """
    if min_patients == 1:
        return np.arange(len(data))
    _, patient_N = np.unique(np.array(data.patients, dtype=str), return_inverse=True)
    groups_NG = _groups(data)
    kept_N = _evaluated(data)
    while True:
        rare_G = np.array(
            [len(np.unique(patient_N[kept_N & group_N])) < min_patients for group_N in groups_NG.T],
            dtype=bool,
        )
        left_N = kept_N & ~groups_NG[:, rare_G].any(axis=1)
        if left_N.sum() == kept_N.sum():
            return np.flatnonzero(kept_N)
        kept_N = left_N


def _groups(data: ImageSet) -> npt.NDArray[np.bool_]:
    """Which groups each image is in, [N, G]: a class; or with, and without, each label."""
    if data.labels.ndim == 1:
        return np.asarray(data.labels[:, np.newaxis] == np.unique(data.labels))
    shown_NL = data.labels.astype(bool)
    return np.concatenate([shown_NL, ~shown_NL], axis=1)


def _evaluated(data: ImageSet) -> npt.NDArray[np.bool_]:
    """Which images a task evaluates at all, [N]."""
    if data.stores[0].task != "report":
        return np.ones(len(data), dtype=bool)
    places = zip(data.store_index, data.row_index, strict=True)
    return np.array([bool(tokenise(data.stores[s].reports[r])) for s, r in places], dtype=bool)
