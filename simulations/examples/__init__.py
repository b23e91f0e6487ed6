"""Example images with the federated model's answer, for the report of a simulation.

Only a simulation has these: its images are public or procedural, and stay in the run folder.

    examples/examples.json   one row an image: its site, what is true, what the model said
    examples/NNN.png         the image, as a reader wants to see it
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet, load_site_data
from medfed.client.site import load_site
from medfed.client.statistics import harmonised_data
from medfed.common.errors import SiteRefusal
from medfed.common.files import write_json
from medfed.common.models import build_model
from medfed.common.seeding import numpy_rng
from medfed.common.state_dicts import read_state, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task, make_task
from medfed.common.text import tokenise
from medfed.server.checkpoint import read_weights
from medfed.server.records import ArmFolder
from medfed.server.statistics import reference_of_run
from medfed.server.words import VOCABULARY_FILE, read_vocabulary
from medfed.simulations.examples.classification import classification_rows
from medfed.simulations.examples.report import report_rows
from medfed.simulations.examples.segmentation import segmentation_rows

NUM_EXAMPLES = 16

# Each makes rows of the table, with the picture of each under "picture".
_ROWS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "classification": classification_rows,
    "segmentation": segmentation_rows,
    "report": report_rows,
}


def write_examples(run: Path, study: StudyConfig) -> None:
    """Write `examples/`: held-out images of all sites, drawn by seed, truth and prediction.

    The same run gives the same files.
    """
    arm = run / "arms" / "federated"
    words = read_vocabulary(arm / VOCABULARY_FILE) if study.task.type == "report" else ()
    task = make_task(study, words)
    model = _final_model(arm, study, task)
    folder = run / "examples"
    folder.mkdir(exist_ok=True)
    sites = sorted((arm / "sites").glob("*/site.toml"))
    plan, reference = ArmFolder(arm).read_plan(), reference_of_run(arm, study)
    share = -(-NUM_EXAMPLES // len(sites))
    table: list[dict[str, Any]] = []
    for path in sites[:NUM_EXAMPLES]:
        site = load_site(path)
        data = load_site_data(site, study)
        try:
            data = harmonised_data(data, study, site, run=plan.run, reference=reference)
        except SiteRefusal:
            continue  # it has no images as the model sees them, and took no part
        held_out = data.test
        chosen = _draw(held_out, study, site.name)[: min(share, NUM_EXAMPLES - len(table))]
        loader = BatchLoader(held_out, task, study, torch.device("cpu"))
        with torch.inference_mode():
            rows = _ROWS[study.task.type](model, task, loader, held_out, np.sort(chosen), study)
        for row in rows:
            name = f"{len(table):03d}.png"
            Image.fromarray(row.pop("picture")).save(folder / name)
            table.append({"image": name, "site": site.name, **row})
    write_json(folder / "examples.json", table)


def _final_model(arm: Path, study: StudyConfig, task: Task) -> nn.Module:
    """The federated model, on the CPU, as it was at the end."""
    # What training started from is overwritten, and its file may be gone.
    section = study.model.model_copy(update={"weights": "", "weights_sha256": ""})
    model = build_model(study.model_copy(update={"model": section}), task.num_outputs)
    write_state(model, read_weights(arm / "model.safetensors", list(read_state(model))))
    # As many threads as at a site: their number decides how sums are rounded.
    torch.set_num_threads(study.compute.threads)
    return model.eval()


def _draw(data: ImageSet, study: StudyConfig, site: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of a site's images in random order; of reports only those that have words."""
    order = numpy_rng(study.study.seed, "examples", site).permutation(len(data))
    if study.task.type != "report":
        return order
    reports = data.examples(order).reports
    return order[[bool(tokenise(text)) for text in reports]]
