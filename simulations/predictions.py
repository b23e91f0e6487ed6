"""`write_predictions`: what every model of a finished simulation says of each held-out image.

For tests and plots of one's own. Of a classifier that is the probability of each class; of other
tasks the figures of each image. Only a simulation can say it: hospitals send sums.
"""

import csv
import io
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.common.errors import MedfedError, RunError
from medfed.common.files import write_atomically
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json
from medfed.common.tasks import Classification, Task, evaluate_apart
from medfed.server.records import ArmFolder
from medfed.simulations.examples.classification import names_of, true_classes
from medfed.simulations.held_out import FinalModels, held_out_images, task_of
from medfed.simulations.reporting.arms import FEDERATED_GLOBAL, arm_order, model_name
from medfed.simulations.study import read_run

PREDICTIONS_FILE = "predictions.csv"
_WHERE = ("model", "site", "patient", "image")


def write_predictions(run: Path) -> Path:
    """Write predictions.csv into a run's folder, a line a model and held-out image.

    `image` numbers the site's held-out images; subgroups' columns come with it. Classes that are
    true are joined by +. Every model has the name that figures.csv gives it, and is asked at every
    site: with personal models "federated" is each site's own, "federated global" that of all.

    Returns:
        Its path.

    Raises:
        RunError: No arm of a simulation is finished, or its images are not there.
    """
    study, _ = read_run(run)
    arms = sorted((run / "arms").glob("*/sites"), key=lambda path: arm_order(path.parent.name))
    finished = [path.parent for path in arms if _is_finished(path.parent)]
    if study.simulation is None or not finished:
        raise RunError(
            f"{run} has no finished arm of a simulation: there is nobody to ask. Finish it with "
            f"medfed simulate --resume {shlex.quote(str(run))}, or leave out --predictions."
        )
    columns = study.simulation.subgroups
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    try:
        for number, arm in enumerate(finished):
            own = parse_study_json((arm / "study.json").read_text(encoding="utf-8"))
            task = task_of(arm, own)
            if not number:
                writer.writerow([*_WHERE, *columns, *_headings(task)])
            writer.writerows(_rows(arm, own, task, columns))
        write_atomically(run / PREDICTIONS_FILE, text.getvalue().encode())
    except (MedfedError, OSError) as error:
        raise RunError(
            f"The predictions of {run} cannot be written ({error}). Put the prepared store back "
            "and make room, or leave out --predictions."
        ) from None
    return run / PREDICTIONS_FILE


def _is_finished(arm: Path) -> bool:
    outcome = ArmFolder(arm).read_outcome()
    return outcome is not None and outcome["state"] == "finished"


def _headings(task: Task) -> list[str]:
    if isinstance(task, Classification):
        return ["truth", *(f"p_{name}" for name in task.classes)]
    return [figure.key for figure in task.figures]


def _rows(
    arm: Path, study: StudyConfig, task: Task, columns: Sequence[str]
) -> Iterator[Sequence[Any]]:
    use_gpu = study.compute.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if use_gpu else "cpu")
    models = FinalModels(arm, study, task, device)
    asked: dict[str, Callable[[str], nn.Module]] = {model_name(arm.name): models.of}
    if study.federation.has_personal_models:
        asked[FEDERATED_GLOBAL] = lambda _: models.of_all()
    # Images that keep their own size come one at a time.
    size = study.evaluation.batch_size if study.data.fit == "resize" else 1
    for site, images in held_out_images(arm, study):
        loader = BatchLoader(images, task, study, device)
        patients, known = images.patients, [images.column(column) for column in columns]
        for start in range(0, len(images), size):
            chosen = np.arange(start, min(start + size, len(images)))
            for name, model_at in asked.items():
                said = _said(task, model_at(site), loader, images, chosen)
                for image, row in zip(chosen.tolist(), said, strict=True):
                    facts = [values[image] for values in known]
                    yield [name, site, patients[image], image, *facts, *row]


def _said(
    task: Task,
    model: nn.Module,
    loader: BatchLoader,
    images: ImageSet,
    chosen: "np.ndarray[Any, np.dtype[np.int64]]",
) -> list[list[Any]]:
    """Return what comes after the headings of `_WHERE` and columns, a list an image."""
    batch = loader.evaluation_batch(chosen)
    with torch.inference_mode():
        if isinstance(task, Classification):
            probabilities_BL = task.predict(model, batch.inputs).cpu().numpy().tolist()
            labels = images.labels[chosen]
            truths = [names_of(task, true_classes(one, len(task.classes))) for one in labels]
            return [["+".join(n), *row] for n, row in zip(truths, probabilities_BL, strict=True)]
        apart = evaluate_apart(task, model, batch, [np.array([row]) for row in range(len(chosen))])
    figures = [task.metrics(sums) for sums in apart]
    return [[one.get(figure.key, "") for figure in task.figures] for one in figures]
