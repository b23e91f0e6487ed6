"""Every file in studies/ runs: one round on the real files, or on what medfed draws itself."""

import json
import os
from pathlib import Path

import pytest

from medfed.common.study import StudyConfig
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
    "vqa_rad": "vqa_rad",
}
# The pictures of six examinations only: one hospital, batches of one.
FEW = [
    "simulation.partition.num_sites=1",
    "simulation.partition.min_patients=1",
    "federation.min_sites=1",
    "training.batch_size=1",
    "evaluation.test_fraction=0.4",
]


# Of these there are no real files here: test_ready_made_others.py and test_ready_made_radiology.py
# run their studies on small files of the official layout.
ELSEWHERE = {
    *("isic2019", "brats", "aptos", "refuge", "oct_amd"),
    *("nih_chestxray14", "chexpert", "tb_chestxray", "montgomery_tb"),
    *("luna16", "cbis_ddsm", "duke_breast_mri", "nodulemnist3d", "pneumoniamnist_64"),
}


def dataset_of(path: Path) -> str:
    """The data set of a study; of MedMNIST's, all but the one that there are files of by name."""
    simulation = load_study(path).simulation
    if simulation is None:
        return ""
    return simulation.dataset if simulation.name in ("", "pneumoniamnist") else simulation.name


# Those of whose data sets there are real files here, or that need none.
HERE = [
    path for path in sorted(STUDIES.glob("*.toml")) if dataset_of(path) in {*FOLDERS, "phantom"}
]


def test_every_data_set_of_the_studies_is_known_here_or_elsewhere() -> None:
    used = {dataset_of(path) for path in STUDIES.glob("*.toml")}
    assert used - {*FOLDERS, "phantom"} <= ELSEWHERE


def shorter(study: StudyConfig) -> list[str]:
    """What makes a round short: few steps, and of a sweep every cell with two of its seeds."""
    training = study.training
    pace = "local_epochs=1" if training.local_steps is None else "local_steps=2"
    options = [f"training.{pace}"]
    if study.simulation is not None and study.simulation.resamples:
        options.append("simulation.resamples=20")
    if study.sweep is not None:
        options.append("sweep.seeds=[1, 2]")
    return options


@pytest.mark.slow
@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_ready_made_study_runs_a_round(medfed, tmp_path, path) -> None:  # type: ignore[no-untyped-def]
    study = load_study(path)
    assert study.simulation is not None
    options = ["training.rounds=1", 'simulation.arms=["federated"]', *shorter(study)]
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
    assert (run / "report.html").exists()
    for one in sorted((run / "runs").iterdir()) if study.sweep else [run]:
        [record] = ArmFolder(one / "arms" / "federated").read_rounds()
        assert {site.status for site in record.sites.values()} == {"ok"}
        assert record.metrics is not None
        assert record.metrics["num_images"] > 0
        sites = json.loads((one / "simulation.json").read_text())["sites"]
        assert set(record.sites) == set(sites)
        assert (one / "report.html").stat().st_size > 50_000
