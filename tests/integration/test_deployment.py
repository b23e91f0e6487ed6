"""The whole of a deployment with real processes: TLS, authenticated SuperNodes, four real clinics.

Coordinator and sites are set up by the commands that people type (`deployment.Deployment`).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, deployment

from medfed.common.ledger import Ledger
from medfed.common.study_file import load_study
from medfed.simulations.study import Options, prepare_run, run_study, start_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

_DATA = (
    Path(os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
    / "ham10000_200x150"
).resolve()
CLINICS = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")

_STUDY = """
[study]
name = "clinics"
seed = 5
[task]
classes = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
[data]
image_size = 24
channels = 3
[training]
rounds = 2
local_steps = 2
batch_size = 16
learning_rate = 0.05
[federation]
min_sites = 3
round_timeout_s = 300
[simulation]
dataset = "ham10000"
arms = ["federated"]
max_epsilon = 50
[simulation.public_num_patients]
rosendahl = 220
vidir_modern = 250
vidir_molemax = 220
vienna_dias = 90
[simulation.partition]
method = "natural"
column = "dataset"
[privacy]
"""
_PRIVACY = {
    "plain": 'unit = "none"\n',
    "private": """unit = "patient"
noise_multiplier = 1.0
sample_rate = 0.2
images_per_patient = 2
target_delta = 1e-4
""",
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Four clinics that are enrolled, approved and connected. Seeded noise is allowed."""
    if not _DATA.is_dir():
        pytest.skip(f"HAM10000 is not at {_DATA}: set MEDFED_TEST_DATA")
    with deployment(tmp_path_factory.mktemp("deployment")) as deployed:
        for kind in _PRIVACY:
            write_study(deployed.folder, kind)
        hospitals = deployed.folder / "hospitals"
        deployed.medfed(
            *("data", "trial", "private.toml", "--data", _DATA),
            *("--out", hospitals, "--seeded-noise"),
        )
        for name in CLINICS:
            # What the tests' studies without privacy need; no default allows it.
            file = hospitals / name / "site.toml"
            text = file.read_text().replace('unit = "patient"', 'unit = "none"')
            file.write_text(text.replace("images_per_patient = 2", "images_per_patient = 4"))
        deployed.found()
        deployed.start_coordinator()
        deployed.enrol({name: hospitals / name for name in CLINICS})
        deployed.start_sites()
        yield deployed


def write_study(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.toml"
    path.write_text(_STUDY + _PRIVACY[kind])
    return path


@pytest.mark.parametrize("kind", ["plain", "private"])
def test_deployed_run_is_the_simulated_run_bit_for_bit(
    kind: str, federation: Deployment, tmp_path: Path
) -> None:
    simulated = tmp_path / "simulated"
    start_study(load_study(write_study(tmp_path, kind)), simulated, _DATA, Options())
    prepare_run(simulated)
    run_study(simulated, Options(workers=1))

    arm = federation.run(federation.folder / f"{kind}.toml", kind)
    other = simulated / "arms" / "federated"
    assert (arm / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    for ours, theirs in zip(_rounds(arm), _rounds(other), strict=True):
        assert ours["weights_sha256"] == theirs["weights_sha256"]
        assert ours["metrics"] == theirs["metrics"]
        assert [site["status"] for site in ours["sites"].values()] == ["ok"] * 4
        epsilons = [[s["epsilon"] for s in r["sites"].values()] for r in (ours, theirs)]
        assert epsilons[0] == epsilons[1]
    if kind == "private":
        for name in CLINICS:
            spends = [entry.spend for entry in _ledger(federation, name) if entry.spend.steps]
            # The ledger says that this run was a simulation as far as privacy goes.
            assert {spend.noise for spend in spends if spend.unit == "patient"} == {"seeded"}


def test_real_noise_differs_and_the_ledger_says_so(federation: Deployment, tmp_path: Path) -> None:
    before = {name: len(_ledger(federation, name)) for name in CLINICS}
    for name in CLINICS:
        _set_policy(federation, name, "allow_seeded_noise", "false")
    try:
        first = federation.run(federation.folder / "private.toml", "noisy-1")
        second = federation.run(federation.folder / "private.toml", "noisy-2")
    finally:
        for name in CLINICS:
            _set_policy(federation, name, "allow_seeded_noise", "true")
    models = [(arm / "model.safetensors").read_bytes() for arm in (first, second)]
    assert models[0] != models[1]
    for name in CLINICS:
        new = _ledger(federation, name)[before[name] :]
        assert len(new) == 4  # two rounds each of two runs
        assert {entry.spend.noise for entry in new} == {"secure"}
        shown = federation.medfed("site", "ledger", "verify", federation.sites[name] / "site.toml")
        assert f"{before[name] + 4} entries, chain and signatures hold" in shown


def _set_policy(federation: Deployment, name: str, key: str, value: str) -> None:
    file = federation.sites[name] / "site.toml"
    lines = [
        f"{key} = {value}" if line.startswith(f"{key} =") else line
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines) + "\n")


def _rounds(arm: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]


def _ledger(federation: Deployment, name: str) -> list[Any]:
    return list(Ledger(federation.sites[name] / "state").entries())
