"""Example images with the federated model's prediction, for the report of a simulation.

Only a simulation has these: its images are public or procedural, and stay in the run folder.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medfed.client.data.site_data import ImageSet, load_site_data
from medfed.client.site import load_site
from medfed.client.training import to_model
from medfed.common.files import write_json
from medfed.common.models import build_model
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import read_state, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Classification
from medfed.server.checkpoint import read_weights

NUM_EXAMPLES = 16


def write_examples(run: Path, study: StudyConfig) -> None:
    """Write `examples/`: held-out images of all sites, drawn by seed, truth and prediction."""
    arm = run / "arms" / "federated"
    task = Classification(study.task)
    model = build_model(study, task.num_outputs)
    weights = read_weights(arm / "model.safetensors", list(read_state(model)))
    write_state(model, weights)
    model.eval()
    folder = run / "examples"
    folder.mkdir(exist_ok=True)
    sites = sorted((arm / "sites").glob("*/site.toml"))
    share = -(-NUM_EXAMPLES // len(sites))
    table: list[dict[str, Any]] = []
    for path in sites:
        site = load_site(path)
        held_out = load_site_data(site, study).test
        rng = numpy_rng(study.study.seed, "examples", site.name)
        chosen = np.sort(rng.permutation(len(held_out))[:share])
        for row in _predict(model, task, held_out, chosen, study):
            if len(table) < NUM_EXAMPLES:
                name = f"{len(table):03d}.png"
                _write_picture(folder / name, row.pop("pixels"))
                table.append({"image": name, "site": site.name, **row})
    write_json(folder / "examples.json", table)


def _predict(
    model: torch.nn.Module,
    task: Classification,
    data: ImageSet,
    chosen: np.ndarray[Any, np.dtype[np.int64]],
    study: StudyConfig,
) -> list[dict[str, Any]]:
    images = data.images_NCHW(chosen)
    with torch.inference_mode():
        outputs = model(to_model(images, study.data, torch.device("cpu")))
    probabilities = task.probabilities(outputs).numpy()
    rows = []
    for pixels, label, scores in zip(images, data.labels[chosen], probabilities, strict=True):
        if task.mode == "multiclass":
            truth = [task.classes[int(label)]]
            correct = int(scores.argmax()) == int(label)
        else:
            truth = [task.classes[i] for i in np.flatnonzero(label)]
            correct = bool(((scores >= 0.5) == label.astype(bool)).all())
        rows.append(
            {
                "pixels": pixels,
                "truth": truth,
                "probabilities": {
                    name: round(float(score), 4)
                    for name, score in zip(task.classes, scores, strict=True)
                },
                "correct": correct,
            }
        )
    return rows


def _write_picture(path: Path, pixels_CHW: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    grey = pixels_CHW.shape[0] == 1
    Image.fromarray(pixels_CHW[0] if grey else pixels_CHW.transpose(1, 2, 0)).save(path)
