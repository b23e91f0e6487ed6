"""Every file in studies/ runs: one round on the real files, or on what medfed draws itself."""

import json
import os
from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder

STUDIES = Path(__file__).parents[2] / "studies"
REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data")
)
FOLDERS = {
    "ham10000": "ham10000_200x150",
    "medmnist": "pneumoniamnist_28",
    "lgg": "lgg_mri_kaggle_3m",
    "msd": "msd_hippocampus",
    "chase_db1": "chase_db1",
    "busi": "busi",
    "covid_chestxray": "covid_chestxray",
    "iu_xray": "iu_xray_openi",
}
# The pictures of six examinations only: one hospital, batches of one.
FEW = [
    "simulation.partition.num_sites=1",
    "simulation.partition.min_patients=1",
    "federation.min_sites=1",
    "training.batch_size=1",
    "evaluation.test_fraction=0.4",
]


def test_every_data_set_of_the_studies_is_known_here() -> None:
    used = [load_study(path).simulation for path in STUDIES.glob("*.toml")]
    assert {simulation.dataset for simulation in used if simulation} <= {*FOLDERS, "phantom"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_ready_made_study_runs_a_round(medfed, tmp_path, path) -> None:  # type: ignore[no-untyped-def]
    study = load_study(path)
    assert study.simulation is not None
    options = ["training.rounds=1", 'simulation.arms=["federated"]']
    arguments: list[object] = []
    if study.simulation.dataset != "phantom":
        folder = REAL_DATA / FOLDERS[study.simulation.dataset]
        if not folder.is_dir():
            pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
        arguments += ["--data", folder]
    if study.simulation.dataset == "iu_xray":
        options += FEW
    for option in options:
        arguments += ["--set", option]
    run = tmp_path / "run"
    medfed("simulate", path, "--out", run, *arguments)
    [record] = ArmFolder(run / "arms" / "federated").read_rounds()
    assert {site.status for site in record.sites.values()} == {"ok"}
    assert record.metrics is not None
    assert record.metrics["num_images"] > 0
    sites = json.loads((run / "simulation.json").read_text())["sites"]
    assert set(record.sites) == set(sites)
    assert (run / "report.html").stat().st_size > 50_000
