"""Active learning at a site: which patients an annotator labels next, and what is labelled so far.

At each visit the site scores its patients without labels by the global model that the round starts
from, and the annotator labels those of the highest score. The annotator is simulated
(`[annotation]` in site.toml): the labels are in the store, held back by the site's subset.

Who was labelled at which visit is kept at the site, in annotations.json beside the ledger, before a
round that uses the labels is trained. A round that is asked for again finds them there and trains
on the same images. Scores and names never leave.

Shapes: N images, L classes, *S spatial.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.client.annotations import ANNOTATIONS_FILE, Visit, read_visits, write_visits
from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet, SiteData
from medfed.client.personal import weights_before
from medfed.client.site import SiteConfig
from medfed.client.training import Round
from medfed.client.workspace import Workspace
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.messages import ModelRequest
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import StateDict, write_state
from medfed.common.study.labels import AnnotationSection
from medfed.common.study.simulation_checks import check_annotation
from medfed.common.tasks import Classification, Segmentation, Task


def annotated(here: Workspace, request: ModelRequest, site: SiteConfig, this: Round) -> Workspace:
    """Return the workspace with the labels that the site has in this round.

    If a visit of the annotator is due, it happens first. Another run starts from the subset again.

    Raises:
        SiteRefusal: A study in which no annotator may choose.
        DataError: annotations.json is damaged.
    """
    section, data = site.annotation, here.data
    if section is None or data.unlabelled is None:
        return here
    why = check_annotation(this.study)
    if why:
        raise SiteRefusal(
            RefusalReason.STUDY,
            f"This site's [annotation] {why}. Take it out of site.toml for such a study.",
        )
    path = site.state_folder / ANNOTATIONS_FILE
    visits = read_visits(path, request.run)
    due = (this.round_number - 1) // section.every
    due = due if section.visits is None else min(due, section.visits)
    made = max((visit.number for visit in visits), default=0)
    if made < due:
        labelled = {patient for visit in visits for patient in visit.patients}
        # A site that was not asked in the round of a visit makes up for it.
        number = section.patients * (due - made)
        scoring = (here.model, weights_before(here, request, site), here.task)
        remaining = _without(data.unlabelled, labelled)
        chosen = _choose(remaining, section, number, this, scoring)
        visits = [*visits, Visit(due, this.round_number, tuple(chosen))]
        write_visits(path, request.run, visits)
    known = [p for visit in visits if visit.number <= due for p in visit.patients]
    return replace(here, data=with_labels(data, known))


def with_labels(data: SiteData, patients: Sequence[str]) -> SiteData:
    """Return the data with the labels of these patients known, in this order behind the others."""
    if data.unlabelled is None or not patients:
        return data
    of_patient: dict[str, list[int]] = {}
    for position, patient in enumerate(data.unlabelled.patients):
        of_patient.setdefault(patient, []).append(position)
    moved = np.array([at for patient in patients for at in of_patient[patient]], dtype=np.int64)
    left = _without(data.unlabelled, set(patients))
    train = replace(
        data.train,
        store_index=np.concatenate([data.train.store_index, data.unlabelled.store_index[moved]]),
        row_index=np.concatenate([data.train.row_index, data.unlabelled.row_index[moved]]),
    )
    return replace(data, train=train, unlabelled=left if len(left) else None)


def _without(images: ImageSet, patients: set[str]) -> ImageSet:
    kept = np.array([p not in patients for p in images.patients], dtype=bool)
    return replace(images, store_index=images.store_index[kept], row_index=images.row_index[kept])


def _choose(
    images: ImageSet,
    section: AnnotationSection,
    number: int,
    this: Round,
    scoring: tuple[nn.Module, StateDict, Task],
) -> list[str]:
    """Return whom to label, the most uncertain first."""
    groups = images.groups
    names = [images.patients[positions[0]] for positions in groups]
    if section.acquisition == "random":
        rng = numpy_rng(this.study.study.seed, "annotation", this.round_number, this.site)
        scores = rng.random(len(names))
    else:
        of_image = uncertainties(*scoring, images, this, section.acquisition)
        scores = np.array([of_image[positions].mean() for positions in groups])
    order = np.argsort(-scores, kind="stable")[:number]
    return [names[index] for index in order]


def uncertainties(
    model: nn.Module,
    weights: StateDict,
    task: Task,
    images: ImageSet,
    this: Round,
    acquisition: Literal["entropy", "margin"],
) -> npt.NDArray[np.float64]:
    """Return how unsure the model is of each image, [N]: higher is less sure."""
    if not isinstance(task, Classification | Segmentation):
        raise SiteRefusal(
            RefusalReason.STUDY,
            "This site's [annotation] scores images by the answers of a classification or "
            "segmentation, and the study's plug-in extends neither: set acquisition = "
            '"random".',
        )
    exclusive = isinstance(task, Classification) and task.mode != "multilabel"
    write_state(model, weights)
    model.eval()
    loader = BatchLoader(images, task, this.study, this.device)
    # Images that keep their own size come one at a time, each in windows.
    size = this.study.evaluation.batch_size if this.study.data.fit == "resize" else 1
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), size):
            batch = loader.evaluation_batch(np.arange(start, min(start + size, len(images))))
            answers = task.predict(model, batch.inputs).double()
            parts.append(uncertainty(answers, acquisition, exclusive=exclusive).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(0)


def uncertainty(
    probabilities: Tensor, acquisition: Literal["entropy", "margin"], *, exclusive: bool
) -> Tensor:
    """Return the uncertainty of each image, [N].

    Args:
        probabilities: Of each class or structure, [N, L, *S].
        acquisition: Entropy in nats; or one minus the margin between the first two.
        exclusive: Whether one of L is right; else each (and each pixel) is a question of its own,
            and the mean over them counts.

    Reference: Settles 2009, section 3.1, https://minds.wisconsin.edu/handle/1793/60660
    """
    if not exclusive:
        probabilities = torch.stack([probabilities, 1 - probabilities], dim=1)
    if acquisition == "entropy":
        found: Tensor = torch.special.entr(probabilities).sum(dim=1)
    else:
        first, second = probabilities.topk(2, dim=1).values.unbind(dim=1)
        found = 1 - (first - second)
    return found.reshape(len(found), -1).mean(dim=1)
