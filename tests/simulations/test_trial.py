"""Trial hospitals are the simulation's sites: own patients only, and the same bits."""

import hashlib
import shutil
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from medfed.client.app import app as client_app
from medfed.client.data.store import open_store
from medfed.client.site import load_site
from medfed.common.errors import DataError
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.server.app import main as server_main
from medfed.simulations.grids.local import LocalGrid
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
[privacy]
unit = "patient"
noise_multiplier = 1.0
sample_rate = 0.3
images_per_patient = 2
target_delta = 1e-3
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
[simulation.phantom]
num_patients = 120
num_scanners = 2
[simulation.partition]
method = "natural"
column = "scanner"
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "study.toml").write_text(_STUDY)
    return load_study(tmp_path / "study.toml")


def test_trial_sites_end_in_the_weights_of_the_simulation(
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


def test_trial_site_holds_its_own_patients_and_allows_no_seeded_noise_by_itself(
    study: StudyConfig, tmp_path: Path
) -> None:
    sites = [
        load_site(path)
        for path in write_trial_sites(study, None, tmp_path / "hospitals", seeded_noise=False)
    ]
    stores = [open_store(site.path(site.data.stores[0])) for site in sites]
    patients = [set(store.patients) for store in stores]
    assert all(patients)
    assert not patients[0] & patients[1]
    assert not any(site.policy.allow_seeded_noise for site in sites)
    assert stores[0].key != stores[1].key


def test_trial_refuses_to_overwrite_a_folder(study: StudyConfig, tmp_path: Path) -> None:
    first, *_ = write_trial_sites(study, None, tmp_path / "hospitals", seeded_noise=False)
    with pytest.raises(DataError, match="exists already"):
        write_trial_sites(study, None, tmp_path / "hospitals", seeded_noise=False)
    assert load_site(first).name
