"""Example images with the federated model's answer, for the report of a simulation.

Only a simulation has these: its images are public or procedural, and stay in the run folder.

    examples/examples.json   one row an image: its site, what is true, what the model said
    examples/NNN.png         the image, as a reader wants to see it
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import ImageSet
from medfed.common.files import write_atomically, write_json
from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig
from medfed.common.tasks import is_own_task
from medfed.common.text import tokenise
from medfed.simulations.examples.classification import classification_rows
from medfed.simulations.examples.report import report_rows
from medfed.simulations.examples.segmentation import segmentation_rows
from medfed.simulations.held_out import FinalModels, held_out_images, task_of

NUM_EXAMPLES = 16
_PNG_LEVEL = 2  # a third of the default's time, files a quarter larger

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
    task = task_of(arm, study)
    models = FinalModels(arm, study, task)
    folder = run / "examples"
    folder.mkdir(exist_ok=True)
    share = -(-NUM_EXAMPLES // len(list((arm / "sites").glob("*/site.toml"))))
    table: list[dict[str, Any]] = []
    for name, held_out in held_out_images(arm, study):
        # What another task answers, only its authors could show.
        if len(table) >= NUM_EXAMPLES or not is_own_task(task, study):
            break
        chosen = _draw(held_out, study, name)[: min(share, NUM_EXAMPLES - len(table))]
        loader, model = BatchLoader(held_out, task, study, torch.device("cpu")), models.of(name)
        with torch.inference_mode():
            rows = _ROWS[study.task.type](model, task, loader, held_out, np.sort(chosen), study)
        for row in rows:
            file = f"{len(table):03d}.png"
            write_atomically(folder / file, _png(row.pop("picture")))
            table.append({"image": file, "site": name, **row})
    write_json(folder / "examples.json", table)


def _png(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    content = BytesIO()
    Image.fromarray(picture).save(content, "PNG", compress_level=_PNG_LEVEL)
    return content.getvalue()


def _draw(data: ImageSet, study: StudyConfig, site: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of a site's images in random order; of reports only those that have words."""
    order = numpy_rng(study.study.seed, "examples", site).permutation(len(data))
    if study.task.type != "report":
        return order
    reports = data.examples(order).reports
    return order[[bool(tokenise(text)) for text in reports]]
