"""Small real runs, made once; each test sabotages a copy of one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.simulations.study import Options, prepare_run, run_study, start_study

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


_PATIENTS = SMALL[SMALL.index("[privacy]") : SMALL.index("[simulation]")]
_PER_SITE = """
[privacy]
unit = "site"
noise_multiplier = {noise}
target_delta = 1e-3
[privacy.site]
expected_sites = 3
max_update_norm = 0.5
"""


def _small(privacy: str) -> str:
    study = SMALL.replace(_PATIENTS, privacy).replace("rounds = 4", "rounds = 3\nbatch_size = 8")
    return study.replace("num_scanners = 2", "num_scanners = 3")


STUDIES = {
    "patients": SMALL.replace("rounds = 4", "rounds = 3"),
    # Sites are drawn, the bound moves, and the coordinator adds the noise.
    "site level": _small(
        _PER_SITE.format(noise=2.0) + "adaptive_quantile = 0.5\ncount_noise_multiplier = 3.0\n"
    ).replace("[federation]", "[federation]\nfraction = 0.7"),
    # All sites add a share, and their sum is all that the coordinator sees.
    "shared noise": _small(
        _PER_SITE.format(noise=0.5)
        + '[secure_aggregation]\nenabled = true\ndistributed_noise = "discrete_gaussian"\n'
        + "honest_sites = 1.0\n"
    ),
    "no privacy": _small('[privacy]\nunit = "none"\n'),
}

Prepare = Callable[..., Path]


@pytest.fixture(scope="session")
def prepare(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Prepare:
    """Makes a run folder of one of `STUDIES`, ready to run."""

    def prepare_study(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
        (folder / "small.toml").write_text(STUDIES[kind])
        study = load_study(folder / "small.toml")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEDFED_CACHE", str(cache))
            start_study(study, folder / "run", None, Options())
            prepare_run(folder / "run")
        return folder / "run"

    return prepare_study


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
