"""One small real run, made once; each test sabotages a copy of it."""

import shutil
from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.simulations.study import Options, run_study, start_study

SMALL = """
[study]
name = "small"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 4
local_steps = 2
learning_rate = 0.1
[federation]
min_sites = 2
[privacy]
noise_multiplier = 1.0
sample_rate = 0.3
expected_batch_size = 8
images_per_patient = 2
target_delta = 1e-3
[simulation]
dataset = "phantom"
max_epsilon = 50
arms = ["federated"]
[simulation.phantom]
num_patients = 80
num_scanners = 2
[simulation.partition]
method = "natural"
column = "scanner"
"""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    (folder / "small.toml").write_text(SMALL)
    study = load_study(folder / "small.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFED_CACHE", str(cache))
        start_study(study, folder / "run", None, Options())
        run_study(folder / "run", Options())
    return folder / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to be sabotaged."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def state(run: Path) -> Path:
    """The state folder of one of its sites."""
    return run / "arms" / "federated" / "sites" / "scanner-1" / "state"
