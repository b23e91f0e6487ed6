"""Each held-out patient's own metric sums under one model.

A task's figures come from sums over images (`common.metrics`), so those of any set of patients,
drawn with replacement or all of one sex, come from adding these.

Shapes: P patients, D numbers of all of a task's sums together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from medfed.client.batches import BatchLoader
from medfed.common.metrics import MetricSums, add_sums
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json
from medfed.common.tasks import Task
from medfed.simulations.held_out import FinalModels, held_out_images, task_of


@dataclass(frozen=True)
class PatientSums:
    """Held-out patients of all sites under one model.

    Attributes:
        task: What turns sums into figures.
        sums_PD: Each patient's sums, flat.
        sites: Each patient's site.
        columns: Each patient's value of some metadata columns, of the first image.
    """

    task: Task
    sums_PD: sparse.csr_array
    sites: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.sites)

    def figures(self, counts_P: npt.NDArray[np.int64]) -> dict[str, float]:
        """Return the figures of a set in which each patient is so many times."""
        return self.task.metrics(unflat(counts_P @ self.sums_PD, self.task))


def patient_sums(arm: Path, columns: Sequence[str]) -> PatientSums:
    """Evaluate an arm's final model on every held-out patient alone.

    Args:
        arm: A finished arm's folder.
        columns: Metadata columns to read along.
    """
    study = parse_study_json((arm / "study.json").read_text(encoding="utf-8"))
    task = task_of(arm, study)
    device = _device(study)
    models = FinalModels(arm, study, task, device)
    rows: list[sparse.csr_array] = []
    sites: list[str] = []
    values: dict[str, list[str]] = {column: [] for column in columns}
    with torch.inference_mode():
        for name, images in held_out_images(arm, study):
            loader, model = BatchLoader(images, task, study, device), models.of(name)
            known = {column: images.column(column) for column in columns}
            for positions in images.groups:
                # Images that keep their own size come one at a time, each in windows.
                size = len(positions) if study.data.fit == "resize" else 1
                parts = [
                    task.evaluate(model, loader.evaluation_batch(positions[start : start + size]))
                    for start in range(0, len(positions), size)
                ]
                rows.append(sparse.csr_array(flat(add_sums(parts), task)[None]))
                sites.append(name)
                for column in columns:
                    values[column].append(known[column][positions[0]])
    return PatientSums(
        task,
        sparse.csr_array(sparse.vstack(rows)),
        tuple(sites),
        {column: tuple(texts) for column, texts in values.items()},
    )


def flat(sums: MetricSums, task: Task) -> npt.NDArray[np.int64]:
    """Return a task's sums one after another, in the order of `sum_shapes`."""
    return np.concatenate([sums[name].reshape(-1) for name in task.sum_shapes()])


def unflat(values_D: npt.NDArray[np.int64], task: Task) -> MetricSums:
    """Return what `flat` was made of."""
    sums, start = {}, 0
    for name, shape in task.sum_shapes().items():
        length = int(np.prod(shape, dtype=np.int64))
        sums[name] = np.asarray(values_D[start : start + length], dtype=np.int64).reshape(shape)
        start += length
    return sums


def _device(study: StudyConfig) -> torch.device:
    use_gpu = study.compute.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")
