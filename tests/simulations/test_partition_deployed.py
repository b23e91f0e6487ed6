"""Scanner shift and label noise go where data go: all arms, trial hospitals, the report."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from medfed.client.app import app as client_app
from medfed.client.data.store import open_store
from medfed.client.site import load_site
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.server.app import main as server_main
from medfed.simulations.grids.local import LocalGrid
from medfed.simulations.reporting.report import write_report
from medfed.simulations.study import Options, prepare_run, run_study, start_study
from medfed.simulations.trial import write_trial_sites

_STUDY = """
[study]
name = "tiny"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 2
local_steps = 2
batch_size = 8
[federation]
min_sites = 2
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
[simulation.phantom]
num_patients = 150
[simulation.partition]
method = "dirichlet"
alpha = 5.0
num_sites = 3
sizes = "power"
exponent = 0.5
min_patients = 30
[simulation.partition.missing]
at_sites = { site-2 = ["nodule"] }
[simulation.partition.shift]
[simulation.partition.noise]
rate = 0.3
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "study.toml").write_text(_STUDY)
    return load_study(tmp_path / "study.toml")


@pytest.mark.slow
def test_trial_sites_with_shift_and_noise_end_in_the_weights_of_the_simulation(
    study: StudyConfig, tmp_path: Path
) -> None:
    simulated = tmp_path / "simulated"
    start_study(study, simulated, None, Options())
    prepare_run(simulated)
    arm = shutil.copytree(simulated / "arms" / "federated", tmp_path / "arm")
    shutil.rmtree(arm / "sites")
    run_study(simulated, Options(workers=1))

    sites = write_trial_sites(study, None, tmp_path / "hospitals", seeded_noise=True)
    context = Context(1, 1, {}, RecordDict(), {"arm": str(arm)})
    with LocalGrid(client_app, dict(enumerate(sites, start=2)), workers=1) as grid:
        server_main(grid, context)
    models = [
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for folder in (arm, simulated / "arms" / "federated")
    ]
    assert models[0] == models[1]
    text = write_report(simulated).read_text()
    assert "dirichlet (num_sites = 3, alpha = 5.0, sizes = power, exponent = 0.5)" in text
    assert "label noise (rate = 0.3)" in text


def test_every_arm_reads_the_same_shifted_images_and_wrong_labels(
    study: StudyConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start_study(study, run, None, Options())
    prepare_run(run)
    facts = json.loads((run / "simulation.json").read_text())
    assert set(facts["changes"]["shift"]) == set(facts["sites"]) == {"site-1", "site-2", "site-3"}
    assert all(noted["patients"] for noted in facts["changes"]["noise"].values())
    # Nobody at site-2 has it, but for labels that are wrong.
    nodule = 1
    assert facts["sites"]["site-2"]["test"]["labels"][nodule] == 0
    sites = [load_site(path) for path in sorted((run / "arms").glob("*/sites/*/site.toml"))]
    assert {site.name for site in sites} == {"site-1", "site-2", "site-3", "pooled"}
    folders = {site.path(site.data.stores[0]) for site in sites}
    [folder] = folders
    [true] = set(folder.parent.iterdir()) - folders
    shifted, prepared = open_store(folder), open_store(true)
    assert (shifted.images_NCHW != prepared.images_NCHW).any(axis=(1, 2, 3)).all()
    assert 0.1 < np.mean(shifted.labels != prepared.labels) < 0.4
