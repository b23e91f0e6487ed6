"""The same study on a GPU: repeatable there, and close to the CPU. Skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.client.data.prepare import prepare_store
from medfed.client.data.site_data import load_site_data
from medfed.client.site import load_site
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.client.workspace import workspace
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.simulations.phantom import load_phantom

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def study_on(device: str, unit: str, model: str) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "gpu", "seed": 3},
            "task": {"classes": ["normal", "nodule", "effusion", "cardiomegaly"]},
            "data": {"image_size": 32},
            "model": {"name": model},
            "training": {"local_steps": 5, "learning_rate": 0.05},
            "privacy": {"unit": unit, "expected_batch_size": 20, "sample_rate": 0.3},
            "compute": {"device": device},
            "simulation": {
                "dataset": "phantom",
                "phantom": {"num_patients": 80, "max_images_per_patient": 2},
            },
        },
        "test",
    )


def train(tmp_path: Path, device: str, unit: str, model: str) -> StateDict:
    study = study_on(device, unit, model)
    assert study.simulation is not None
    dataset = load_phantom(study.simulation.phantom, image_size=32, seed=3)
    store = prepare_store(dataset, study.task, study.data, parent=tmp_path, pseudonym_key=b"k")
    (tmp_path / "site.toml").write_text(f'name = "s"\n[data]\nstores = ["{store.folder}"]\n')
    site = load_site(tmp_path / "site.toml")
    here = workspace(site, study, ())
    this = Round(study, "s", 1, torch.device(device))
    start = read_state(here.model)
    data = load_site_data(site, study).train
    if unit == "none":
        return train_without_privacy(here.model, start, data, here.task, this).update
    return train_with_privacy(
        here.model, start, data, here.task, this, seeded=True, public_num_patients=None
    ).update


@pytest.mark.parametrize("unit", ["none", "patient"])
@pytest.mark.parametrize("model", ["cnn", "resnet18", "densenet121"])
def test_training_on_a_gpu_repeats_bit_for_bit(tmp_path: Path, unit: str, model: str) -> None:
    one = train(tmp_path, "cuda", unit, model)
    other = train(tmp_path, "cuda", unit, model)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert any(np.abs(array).max() > 0 for array in one.values())


def test_training_on_a_gpu_is_close_to_the_cpu(tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    gpu = train(tmp_path, "cuda", "none", "cnn")
    cpu = train(tmp_path, "cpu", "none", "cnn")
    for name, array in cpu.items():
        assert np.linalg.norm(gpu[name] - array) <= 1e-2 * np.linalg.norm(array), name
