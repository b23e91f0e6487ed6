"""A finished arm's model, and the held-out images that it is judged on, site by site.

Only a simulation has these in one place: its images are public or procedural.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from medfed.client.apfl import alpha_of
from medfed.client.data.site_data import ImageSet, load_site_data
from medfed.client.own_parts import OwnParts
from medfed.client.personal import combined, first_part
from medfed.client.site import SiteConfig, load_site
from medfed.client.statistics import harmonised_data
from medfed.common.arithmetic import make_arithmetic_repeatable
from medfed.common.errors import RunError, SiteRefusal
from medfed.common.models import build_model, local_names, shared_names, trained_parameters
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.state_dicts import StateDict, read_state, write_state
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


def final_model(
    arm: Path, study: StudyConfig, task: Task, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the arm's model as it was at the end, in evaluation mode, with the sites' bits."""
    # What training started from is overwritten, and its file may be gone.
    section = study.model.model_copy(update={"weights": "", "weights_sha256": ""})
    model = build_model(study.model_copy(update={"model": section}), task.num_outputs)
    write_state(model, read_weights(arm / "model.safetensors", list(read_state(model))))
    # As at a site: threads, layout and, on a GPU, TF32 decide how sums are rounded.
    make_arithmetic_repeatable(study)
    if torch.device(device).type == "cpu":
        lay_out_for_cpu(model)
    return model.to(device).eval()


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
        self._model = final_model(arm, study, task, device)
        self._global = read_state(self._model)
        self._last = 0
        if study.federation.keeps_at_sites:
            self._last = max(record.round_number for record in ArmFolder(arm).read_rounds())

    def of(self, site: str) -> nn.Module:
        """Return a site's model, in evaluation mode; it is the same network for all.

        A site that keeps nothing yet uses what its first round would begin with.
        """
        if not self._study.federation.keeps_at_sites:
            return self._model
        start = self._start()
        kept = self._kept(load_site(self._arm / "sites" / site / "site.toml"), start)
        return self._with(kept or start)

    def of_all(self) -> nn.Module:
        """Return the model that all sites share; it is the same network as `of`."""
        write_state(self._model, self._global)
        return self._model

    def kept_by(self, site: SiteConfig) -> nn.Module:
        """Return the same for a site wherever it is; the study keeps something at its sites.

        Raises:
            RunError: The site keeps nothing of this run that can be read.
        """
        kept = self._kept(site, self._start())
        if kept is None:
            raise RunError(
                f"Site {site.name} keeps no part of this run in {site.state_folder}: it trained in "
                "none of its rounds, in another run, or its file is damaged (see the log with -v). "
                "Name a site that trained."
            )
        return self._with(kept)

    def alpha_of(self, site: SiteConfig) -> float | None:
        """Return the share of a site's own weights in its model; None but for apfl."""
        kept = self._kept(site, self._start())
        if kept is None or self._study.federation.algorithm != "apfl":
            return None
        return alpha_of(kept, self._study)

    def _start(self) -> StateDict:
        shared, local = (
            {name: self._global[name] for name in names(self._model, self._study)}
            for names in (shared_names, local_names)
        )
        return first_part(self._study, shared, local)

    def _kept(self, site: SiteConfig, start: StateDict) -> StateDict | None:
        run = ArmFolder(self._arm).read_plan().run
        return OwnParts(site.state_folder, run, self._study.digest()).after(self._last, start)

    def _with(self, part: StateDict) -> nn.Module:
        names = trained_parameters(self._model)
        write_state(self._model, combined(self._study, self._global, part, names))
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
