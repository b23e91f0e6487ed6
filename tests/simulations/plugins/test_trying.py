"""A plug-in's network and task are tried together when a study starts; random draws repeat."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medfed.common.errors import RunError, StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.simulations.plugins import complete
from medfed.simulations.study import Options, run_arms, start_study

Install = Callable[..., None]

NET = """
from torch import nn
from medfed.common.plugins import ModelPlugin, Section

class Options(Section):
    rate: float = 0.5

class Twice(nn.Module):
    def forward(self, logits):
        return logits, logits

def build(options, shape):
    num = shape.num_outputs
    first = nn.Flatten(), {norm}nn.Dropout(options.rate)
    return nn.Sequential(*first, nn.Linear(shape.image_size ** 2, {outputs}){then})

net = ModelPlugin(Options, build)
"""
TASK = """
import numpy as np
from medfed.common.plugins import Section, TaskPlugin
from medfed.common.tasks import Classification

class Own(Classification):
    def __init__(self, options, study):
        super().__init__(study)
    def loss_per_image(self, outputs, targets):
        losses = super().loss_per_image(outputs, targets)
        return {losses}
    def evaluate(self, model, batch):
        return {{**super().evaluate(model, batch), {sums}}}
    def sum_shapes(self):
        return {{**super().sum_shapes(), {shapes}}}
    @property
    def families(self):
        return {{**super().families, {families}}}

own = TaskPlugin(Section, {make})
"""


def net(outputs: str = "num", then: str = "", norm: str = "") -> str:
    return NET.format(outputs=outputs, then=then, norm=norm)


def task(
    losses: str = "losses", sums: str = "", shapes: str = "", families: str = "", make: str = "Own"
) -> str:
    return TASK.format(losses=losses, sums=sums, shapes=shapes, families=families, make=make)


def study(**sections: Any) -> StudyConfig:
    table: dict[str, Any] = {
        "study": {"name": "test", "seed": 1},
        "task": {"classes": ["normal", "nodule", "effusion", "cardiomegaly"], "plugin": "own"},
        "data": {"image_size": 16},
        "model": {"name": "net"},
        "training": {"rounds": 2, "local_steps": 2, "batch_size": 8},
        "privacy": {"unit": "none"},
    }
    return parse_study({**table, **sections}, "test")


def install_both(install: Install, network: str, task: str) -> None:
    install("nets", network, "[medfed.models]", "net = nets:net")
    install("tasks", task, "[medfed.tasks]", "own = tasks:own")


WRONG = {
    "number of outputs": (net("num + 1"), task(), r"expected outputs \(2, 4\) .* got \(2, 5\)"),
    "two outputs": (net(then=", Twice()"), task(), "got a tuple"),
    "layers": (net(then=", nn.Linear(7, 4)"), task(), "RuntimeError: mat1 and mat2"),
    "one loss": (net(), task("losses.mean()"), r"expected one loss an image, got \(\)"),
    "no tensor": (net(), task("losses.tolist()"), "got a list"),
    "no gradient": (net(), task("losses.detach()"), "detached"),
    "raises": (net(), task("losses[9]"), "IndexError"),
    "shapes of sums": (net(), task(shapes="'more': (3,)"), "sum_shapes says"),
    "real numbers": (
        net(),
        task(sums="'more': np.ones(3)", shapes="'more': (3,)"),
        r"int64, got others for more; medfed\.common\.metrics\.fixed",
    ),
    "count": (
        net(),
        task(sums="'count': np.array([2])", shapes="'count': (1,)"),
        r"\"count\" of shape \(\)",
    ),
    "family": (net(), task(families="'mine': ('own',)"), "families names own, which is no sum"),
    "no task": (net(), task(make="lambda options, study: 3"), "expected a Task, got int without"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_when_the_study_starts(install: Install, name: str) -> None:
    network, own, said = WRONG[name]
    install_both(install, network, own)
    with pytest.raises(StudyError, match=said) as caught:
        complete(study())
    assert "tasks==1.0" in str(caught.value)
    assert "authors" in str(caught.value)


@pytest.mark.parametrize("norm", ["", "nn.BatchNorm1d(256), "], ids=["plain", "batch"])
def test_what_fits_is_taken_and_no_random_state_is_moved(install: Install, norm: str) -> None:
    install_both(install, net(norm=norm), task())
    before = torch.get_rng_state()
    assert complete(study()).plugins.task == "tasks==1.0"
    assert torch.equal(torch.get_rng_state(), before)


SIMULATED = {
    "dataset": "phantom",
    "arms": ["federated"],
    "phantom": {"num_patients": 60, "max_images_per_patient": 1},
    "partition": {"method": "iid", "num_sites": 3},
}


def test_network_that_drops_at_random_repeats_with_any_number_of_workers(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    install_both(install, net(norm="nn.BatchNorm1d(256), "), task())

    def weights(name: str, workers: int, rate: float) -> bytes:
        model = {"name": "net", "options": {"rate": rate}}
        started = complete(study(model=model, simulation=SIMULATED))
        start_study(started, tmp_path / name, None, Options())
        run_arms(tmp_path / name, Options(workers=workers))
        return (tmp_path / name / "arms" / "federated" / "model.safetensors").read_bytes()

    one = weights("one", 1, 0.5)
    assert weights("three", 3, 0.5) == one
    assert weights("other", 1, 0.4) != one


def test_what_breaks_at_the_sites_all_the_same_is_not_to_be_waited_for(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    install_both(install, net(), task("losses if len(losses) < 5 else losses[99]"))
    start_study(complete(study(simulation=SIMULATED)), tmp_path / "run", None, Options())
    with pytest.raises(RunError, match=r"internal.*medfed\.log in the run's folder says why"):
        run_arms(tmp_path / "run", Options(workers=1))
