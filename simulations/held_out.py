"""A finished arm's model, and the held-out images that it is judged on, site by site.

Only a simulation has these in one place: its images are public or procedural.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from medfed.client.data.site_data import ImageSet, load_site_data
from medfed.client.own_parts import OwnParts
from medfed.client.personal import combined
from medfed.client.site import load_site
from medfed.client.statistics import harmonised_data
from medfed.common.errors import SiteRefusal
from medfed.common.models import build_model, local_names, shared_names, trained_parameters
from medfed.common.state_dicts import read_state, write_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Task, make_task
from medfed.server.checkpoint import read_weights
from medfed.server.records import ArmFolder
from medfed.server.statistics import reference_of_run
from medfed.server.words import VOCABULARY_FILE, read_vocabulary
from medfed.simulations.drifting import last_site_file


def task_of(arm: Path, study: StudyConfig) -> Task:
    """Return the arm's task; of reports with the vocabulary that its sites agreed on."""
    words = read_vocabulary(arm / VOCABULARY_FILE) if study.task.type == "report" else ()
    return make_task(study, words)


def final_model(arm: Path, study: StudyConfig, task: Task) -> nn.Module:
    """Return the arm's model as it was at the end, on the CPU, in evaluation mode."""
    # What training started from is overwritten, and its file may be gone.
    section = study.model.model_copy(update={"weights": "", "weights_sha256": ""})
    model = build_model(study.model_copy(update={"model": section}), task.num_outputs)
    write_state(model, read_weights(arm / "model.safetensors", list(read_state(model))))
    # As many threads as at a site: their number decides how sums are rounded.
    torch.set_num_threads(study.compute.threads)
    return model.eval()


class FinalModels:
    """The model that each site of a finished arm uses: with personal models, each its own.

    Args:
        arm: The arm's folder.
        study: Its study.
        task: Its task.
        device: Where to run it.
    """

    def __init__(
        self, arm: Path, study: StudyConfig, task: Task, device: torch.device | str = "cpu"
    ) -> None:
        self._arm, self._study = arm, study
        self._model = final_model(arm, study, task).to(device)
        self._global = read_state(self._model)
        self._last = 0
        if study.federation.keeps_at_sites:
            self._last = max(record.round_number for record in ArmFolder(arm).read_rounds())

    def of(self, site: str) -> nn.Module:
        """Return a site's model, in evaluation mode; it is the same network for all."""
        study, weights = self._study, self._global
        if not study.federation.keeps_at_sites:
            return self._model
        local = local_names(self._model, study)
        start = {name: weights[name] for name in local or shared_names(self._model, study)}
        folder = load_site(self._arm / "sites" / site / "site.toml").state_folder
        run = ArmFolder(self._arm).read_plan().run
        part = OwnParts(folder, run, study.digest()).after(self._last, start) or start
        write_state(self._model, combined(study, weights, part, trained_parameters(self._model)))
        return self._model


def held_out_images(arm: Path, study: StudyConfig) -> Iterator[tuple[str, ImageSet]]:
    """Return each evaluating site's name and held-out images, as the arm's model sees them."""
    plan, reference = ArmFolder(arm).read_plan(), reference_of_run(arm, study)
    for path in sorted((arm / "sites").glob("*/site.toml")):
        site = load_site(last_site_file(path))
        if plan.evaluate_sites is not None and site.name not in plan.evaluate_sites:
            continue
        data = load_site_data(site, study)
        try:
            data = harmonised_data(data, study, site, run=plan.run, reference=reference)
        except SiteRefusal:
            continue  # it has no images as the model sees them, and took no part
        yield site.name, data.test
