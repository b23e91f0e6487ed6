"""A hospital decides whose code runs beside its images, before any of it is loaded."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Message

from medfed.client.app import app
from medfed.client.plugins import check_only_parameters_moved
from medfed.client.policy import check_study
from medfed.client.releases import read_releases
from medfed.client.site import PolicySection
from medfed.common import messages
from medfed.common.errors import MedfedError, RefusalReason, SiteRefusal, StudyError
from medfed.common.messages import Refusal, unpack_reply
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import read_state
from medfed.common.study import StudyConfig
from medfed.simulations.datasets.plugin import DatasetPlugin
from medfed.simulations.grids.local import LocalGrid
from medfed.simulations.plugins import complete

Install = Callable[..., None]

LEAKY = """
from torch import nn
from medfed.common.plugins import ModelPlugin, Section

class Net(nn.Linear):
    def forward(self, images):
        raise {error}

net = ModelPlugin(Section, lambda options, shape: Net(4, shape.num_outputs))
"""
ENTRY = ("[medfed.models]", "net = my_nets:net")


def study(**sections: Any) -> StudyConfig:
    table: dict[str, Any] = {
        "study": {"name": "test"},
        "task": {"classes": ["a", "b"]},
        "data": {"image_size": 16},
        "model": {"name": "net"},
        "training": {"local_steps": 1},
        "plugins": {"model": "my-nets==1.0"},
    }
    return StudyConfig.model_validate({**table, **sections})


def refusal(asked: StudyConfig, policy: PolicySection) -> SiteRefusal:
    with pytest.raises(SiteRefusal) as caught:
        check_study(asked, policy)
    return caught.value


def test_site_runs_no_plugin_that_its_policy_does_not_name(install: Install) -> None:
    install("my-nets", LEAKY, *ENTRY)
    for policy in (PolicySection(), PolicySection(allow_plugins=("their-nets",))):
        found = refusal(study(), policy)
        assert found.reason is RefusalReason.POLICY
        assert "my-nets==1.0" in str(found)
        assert "allow_plugins" in str(found)
    assert "my_nets" not in sys.modules


@pytest.mark.parametrize("name", ["my-nets", "My_Nets"])
def test_site_runs_a_plugin_that_its_policy_names(install: Install, name: str) -> None:
    install("my-nets", LEAKY.format(error="KeyError"), *ENTRY)
    check_study(study(), PolicySection(allow_plugins=(name,)))


@pytest.mark.parametrize(
    ("asked", "installed", "said"),
    [("2.0", "1.0", "installed here is 1.0"), ("1.0", "", "not installed here")],
    ids=["other-version", "not-installed"],
)
def test_site_refuses_another_version_than_it_installed(
    install: Install, asked: str, installed: str, said: str
) -> None:
    if installed:
        install("my-nets", LEAKY, *ENTRY, version=installed)
    plugins = {"model": f"my-nets=={asked}"}
    found = refusal(study(plugins=plugins), PolicySection(allow_plugins=("my-nets",)))
    assert found.reason is RefusalReason.STUDY
    assert said in str(found)
    assert "my_nets" not in sys.modules


def test_site_refuses_a_plugin_of_nobody(install: Install) -> None:
    install("my-nets", LEAKY, *ENTRY)
    found = refusal(study(plugins={}), PolicySection(allow_plugins=("my-nets",)))
    assert found.reason is RefusalReason.POLICY
    assert "does not say whose" in str(found)


def test_package_that_is_allowed_offers_no_other_name(install: Install) -> None:
    install("my-nets", LEAKY, *ENTRY)
    asked = study(model={"name": "os.system"})
    found = refusal(asked, PolicySection(allow_plugins=("my-nets",)))
    assert found.reason is RefusalReason.STUDY
    assert "offers net" in str(found)


def test_site_does_not_ask_for_what_runs_elsewhere() -> None:
    elsewhere = {"aggregation": "rules==1.0", "dataset": "sets==1.0"}
    asked = study(model={"name": "cnn"}, aggregation={"rule": "own"}, plugins=elsewhere)
    check_study(asked, PolicySection())
    assert asked.for_sites().plugins.aggregation == "rules==1.0"
    assert asked.for_sites().plugins.dataset == ""


def test_policy_of_networks_may_name_a_plugins() -> None:
    policy = PolicySection.model_validate({"allow_plugins": ["my-nets"], "models": ["cnn", "net"]})
    assert "net" in policy.models
    with pytest.raises(ValueError, match="expected some of"):
        PolicySection(models=("net",))


def answer(asked: StudyConfig, folder: Path, store: Path, **policy: Any) -> Message:
    """What a real site answers to a request to train `asked`."""
    site = folder / "site.toml"
    table = {"name": "one", "data": {"stores": [str(store)]}, "policy": policy}
    site.write_text(tomli_w.dumps(table))
    model = build_model(asked, 2)
    arrays, frozen = messages.pack_arrays(read_state(model)), frozen_state_digest(model)
    pack = messages.pack_model(asked, "run", 1, arrays, frozen_sha256=frozen, num_participants=1)
    with LocalGrid(app, {7: site}) as grid:
        [reply] = grid.send_and_receive([Message(pack(""), 7, messages.TRAIN)], timeout=60)
    assert not reply.has_error()
    return reply


@pytest.mark.parametrize("error", ["KeyError('Erika Mustermann')", "SystemError('Erika M')"])
def test_what_a_plugin_raises_beside_images_does_not_leave(
    install: Install, tmp_path: Path, store: Path, error: str
) -> None:
    install("my-nets", LEAKY.format(error=error), *ENTRY)
    asked = study(privacy={"unit": "none"})
    reply = answer(asked, tmp_path, store, unit="none", allow_plugins=["my-nets"])
    said = unpack_reply(reply.content)
    assert isinstance(said, Refusal)
    assert said.reason is RefusalReason.INTERNAL
    listed, _ = read_releases(tmp_path / "state")
    assert "Erika" not in repr(listed) + repr(reply.content)


MIXING = """
from torch import nn
from medfed.common.plugins import ModelPlugin, Section

def build(options, shape):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, shape.num_outputs))

net = ModelPlugin(Section, build)
"""


def test_site_charges_nothing_for_a_plugin_that_mixes_patients(
    install: Install, tmp_path: Path, store: Path
) -> None:
    install("my-nets", MIXING, *ENTRY)
    with pytest.raises(StudyError, match=r"BatchNorm1d.*GroupNorm"):
        complete(study())
    # A coordinator that sends it all the same.
    said = unpack_reply(answer(study(), tmp_path, store, allow_plugins=["my-nets"]).content)
    assert isinstance(said, Refusal)
    assert said.reason is RefusalReason.STUDY
    assert not (tmp_path / "state" / "ledger.jsonl").exists()


@pytest.fixture
def store(examples: Path, pictures: Path, tmp_path: Path) -> Path:
    """The pictures as a site prepared them; their labels are the study's a and b."""
    from medfed_examples.dataset import Options, picture_folders

    from medfed.client.data.prepare import prepare_store

    (pictures / "effusion").rename(pictures / "a")
    (pictures / "normal").rename(pictures / "b")
    assert isinstance(picture_folders, DatasetPlugin)
    prepared = study(model={"name": "cnn"}, plugins={})
    dataset = picture_folders.load(Options(), pictures)
    return prepare_store(
        dataset, prepared.task, prepared.data, parent=tmp_path / "stores", pseudonym_key=b"key"
    ).folder


def test_release_under_privacy_holds_nothing_that_has_no_noise() -> None:
    from torch import nn

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    still = {name: np.zeros_like(array) for name, array in read_state(model).items()}
    moving = {**still, "0.weight": np.ones((2, 2), np.float32)}
    check_only_parameters_moved(model, moving)
    with pytest.raises(MedfedError, match=r"1\.num_batches_tracked"):
        check_only_parameters_moved(model, {**still, "1.num_batches_tracked": np.ones((), int)})
