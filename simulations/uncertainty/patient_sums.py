"""Each held-out patient's own metric sums under one model.

A task's figures come from sums over images (`common.metrics`), so those of any set of patients,
drawn with replacement or all of one sex, come from adding these.

Shapes: P patients, R parts of patients (one a batch), D numbers of all of a task's sums together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.common.metrics import MetricSums
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json
from medfed.common.tasks import Task, evaluate_apart
from medfed.simulations.held_out import FinalModels, held_out_images, task_of


@dataclass(frozen=True)
class PatientSums:
    """Held-out patients of all sites under one model.

    Attributes:
        task: What turns sums into figures.
        sums_PD: Each patient's sums, flat.
        sites: Each patient's site.
        columns: Each patient's value of some metadata columns, of the first image.
        patients: Each patient's pseudonym.
    """

    task: Task
    sums_PD: sparse.csr_array
    sites: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    patients: tuple[str, ...] = ()

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
    owners: list[int] = []
    sites: list[str] = []
    patients: list[str] = []
    values: dict[str, list[str]] = {column: [] for column in columns}
    for name, images in held_out_images(arm, study):
        for patient, sums in _parts(task, models.of(name), images, study, device):
            owners.append(len(sites) + patient)
            rows.append(sparse.csr_array(flat(sums, task)[None]))
        first = [positions[0] for positions in images.groups]
        sites += [name] * len(first)
        patients += [images.patients[position] for position in first]
        for column in columns:
            known = images.column(column)
            values[column] += [known[position] for position in first]
    adding_PR = sparse.csr_array(
        (np.ones(len(rows), dtype=np.int64), (owners, np.arange(len(rows)))),
        shape=(len(sites), len(rows)),
    )
    return PatientSums(
        task,
        sparse.csr_array(adding_PR @ sparse.vstack(rows)),
        tuple(sites),
        {column: tuple(texts) for column, texts in values.items()},
        tuple(patients),
    )


def _parts(
    task: Task, model: nn.Module, images: ImageSet, study: StudyConfig, device: torch.device
) -> Iterator[tuple[int, MetricSums]]:
    """Yield each patient's number and sums, batch by batch: one in several batches comes again.

    Batches are those of the run's own evaluation (`client.evaluation`), so that all patients
    together have its very sums.
    """
    owners = np.zeros(len(images), dtype=np.int64)
    for number, positions in enumerate(images.groups):
        owners[positions] = number
    loader = BatchLoader(images, task, study, device)
    # Images that keep their own size come one at a time, each in windows.
    size = study.evaluation.batch_size if study.data.fit == "resize" else 1
    for start in range(0, len(images), size):
        chosen = np.arange(start, min(start + size, len(images)))
        patients = np.unique(owners[chosen])
        groups = [np.flatnonzero(owners[chosen] == patient) for patient in patients]
        with torch.inference_mode():
            sums = evaluate_apart(task, model, loader.evaluation_batch(chosen), groups)
        yield from zip(patients.tolist(), sums, strict=True)


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
