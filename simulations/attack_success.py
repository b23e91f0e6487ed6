"""How often poisoned sites got what they wanted: `attacks.json` of a finished run.

backdoor: held-out images of other classes, with the trigger put into them, that the model takes for
the target; and without it, as the measure of mere mistakes. label_flip: held-out images that the
model calls what the poisoned sites call their class. Each for the federated model, and for the
pooled one, whose data nobody poisoned. Where sites have a model of their own, each is asked about
its own images, as for all figures.

Shapes: B images, C channels, *S spatial, L classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.common.files import write_json
from medfed.common.study import StudyConfig
from medfed.common.study.failures import DATA_POISONS, BackdoorSection, FailuresSection
from medfed.common.study_file import parse_study_json
from medfed.common.tasks import Classification
from medfed.server.records import ArmFolder
from medfed.simulations.held_out import FinalModels, held_out_images, task_of
from medfed.simulations.poisoning import flipped_class, stamp

ATTACKS_FILE = "attacks.json"

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TriggeredImages(ImageSet):
    """Images with a trigger of `size` pixels in each."""

    size: int = 1

    def images_NCHW(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return uint8 images with the trigger, for positions `chosen`."""
        images = np.array(super().images_NCHW(chosen))
        for image, position in zip(images, chosen.tolist(), strict=True):
            stamp(image, self.size, self.shape_of(position))
        return images


def write_attack_success(run: Path, study: StudyConfig) -> None:
    """Write `attacks.json` for a run with poisoned data, unless it is there."""
    assert study.simulation is not None
    failures = study.simulation.failures
    if not failures.poisoned_by(*DATA_POISONS) or (run / ATTACKS_FILE).exists():
        return
    table = {}
    for arm in ("federated", "pooled"):
        folder = run / "arms" / arm
        outcome = ArmFolder(folder).read_outcome() if folder.exists() else None
        if outcome is not None and outcome["state"] == "finished":
            table[arm] = attack_success(folder, failures)
    write_json(run / ATTACKS_FILE, table)


def attack_success(arm: Path, failures: FailuresSection) -> dict[str, dict[str, Any]]:
    """Return by kind of attack the share of images on which it succeeds, and how many there are.

    Args:
        arm: A finished arm's folder.
        failures: Whose attacks.
    """
    study = parse_study_json((arm / "study.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    if not isinstance(task_of(arm, study), Classification):
        return found  # a plug-in's, which says in a way of its own what a model answers
    if failures.backdoor is not None:
        found["backdoor"] = _backdoor(arm, study, failures.backdoor)
    if failures.poisoned_by("label_flip"):
        found["label_flip"] = _label_flip(arm, study, failures)
    return found


def _backdoor(arm: Path, study: StudyConfig, backdoor: BackdoorSection) -> dict[str, Any]:
    target = study.task.classes.index(backdoor.target)
    taken: dict[int, list[npt.NDArray[np.bool_]]] = {0: [], backdoor.size: []}
    for size, own in taken.items():
        for images, shares_BL in _answers(arm, study, size):
            labels = images.labels
            others = labels != target if labels.ndim == 1 else labels[:, target] == 0
            own.append(_says(shares_BL, target, study)[others])
    with_trigger, without = (np.concatenate(taken[size]) for size in (backdoor.size, 0))
    return {
        "success": _share(with_trigger),
        "without_trigger": _share(without),
        "images": len(with_trigger),
    }


def _label_flip(arm: Path, study: StudyConfig, failures: FailuresSection) -> dict[str, Any]:
    taken = []
    for images, shares_BL in _answers(arm, study, 0):
        wanted = np.array(
            [flipped_class(int(label), failures, study.task.classes) for label in images.labels]
        )
        taken.append((shares_BL.argmax(axis=1) == wanted)[wanted != images.labels])
    all_taken = np.concatenate(taken)
    return {"success": _share(all_taken), "images": len(all_taken)}


def _answers(arm: Path, study: StudyConfig, trigger: int) -> Iterator[tuple[ImageSet, Shares]]:
    """Each site's held-out images, with a trigger of so many pixels, and the model's answers."""
    task = task_of(arm, study)
    assert isinstance(task, Classification)  # or `attack_success` asks for none
    models = FinalModels(arm, study, task)
    size = study.evaluation.batch_size
    for site, images in held_out_images(arm, study):
        model = models.of(site)
        seen = images
        if trigger:
            # What the set is made of; a cached property is not.
            parts = {field.name: getattr(images, field.name) for field in fields(ImageSet)}
            seen = TriggeredImages(**parts, size=trigger)
        loader = BatchLoader(seen, task, study, torch.device("cpu"))
        parts_BL = []
        with torch.inference_mode():
            for start in range(0, len(seen), size):
                chosen = np.arange(start, min(start + size, len(seen)))
                batch = loader.evaluation_batch(chosen)
                parts_BL.append(task.predict(model, batch.inputs).numpy())
        yield images, np.concatenate(parts_BL)


def _says(shares_BL: Shares, target: int, study: StudyConfig) -> npt.NDArray[np.bool_]:
    """Whether each answer is the target, or holds it."""
    if study.task.mode == "multilabel":
        return np.asarray(shares_BL[:, target] >= 0.5)
    return np.asarray(shares_BL.argmax(axis=1) == target)


def _share(taken: npt.NDArray[np.bool_]) -> float | None:
    return float(taken.mean()) if len(taken) else None
