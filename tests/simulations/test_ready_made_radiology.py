"""The ready-made studies of chest and breast run a round on tiny files in the official layouts."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.checks import check_records
from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder
from medfed.simulations.datasets.catalogue import load_dataset

sys.path.insert(0, str(Path(__file__).parent / "datasets"))

from layouts_radiology import (
    write_cbis,
    write_chexpert,
    write_duke,
    write_luna,
    write_montgomery,
    write_nih,
    write_tb,
)

STUDIES = Path(__file__).parents[2] / "studies"


def _write_medmnist(name: str, shape: tuple[int, ...], num: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        arrays = {}
        for part, number in (("train", num), ("val", num // 8), ("test", num // 2)):
            arrays[f"{part}_images"] = rng.integers(0, 256, (number, *shape), dtype=np.uint8)
            arrays[f"{part}_labels"] = rng.integers(0, 2, (number, 1), dtype=np.uint8)
        np.savez_compressed(folder / f"{name}.npz", **arrays)

    return write


@dataclass(frozen=True)
class Run:
    """A study's files, how many sites they make, and the size to train at."""

    write: Callable[[Path], None]
    num_sites: int
    image_size: int = 64


RUNS = {
    "tuberculosis": Run(lambda folder: write_tb(folder, 20), 2),
    "tuberculosis_lungs": Run(lambda folder: write_montgomery(folder, 40), 3),
    "pneumonia": Run(_write_medmnist("pneumoniamnist_64", (64, 64), 400), 4),
    "chestxray14": Run(lambda folder: write_nih(folder, 240), 5),
    "chexpert": Run(lambda folder: write_chexpert(folder, 90), 5),
    "lung_nodule": Run(_write_medmnist("nodulemnist3d", (28, 28, 28), 200), 4, 28),
    "lung_nodule_luna16": Run(lambda folder: write_luna(folder, 24), 2, 32),
    "mammography": Run(lambda folder: write_cbis(folder, 24), 4),
    "mammography_outlines": Run(lambda folder: write_cbis(folder, 24), 4),
    "breast_mri": Run(lambda folder: write_duke(folder, 24), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_ready_made_study_runs_a_round_on_official_files(medfed, tmp_path, name) -> None:  # type: ignore[no-untyped-def]
    run, data, folder = RUNS[name], tmp_path / "data", tmp_path / "run"
    run.write(data)
    study = load_study(STUDIES / f"{name}.toml")
    options = [
        "training.rounds=1",
        "training.batch_size=2",
        'simulation.arms=["federated"]',
        f"data.image_size={run.image_size}",
        *(() if study.training.local_steps is None else ("training.local_steps=2",)),
    ]
    arguments = [part for option in options for part in ("--set", option)]
    medfed("simulate", STUDIES / f"{name}.toml", "--data", data, "--out", folder, *arguments)
    [record] = ArmFolder(folder / "arms" / "federated").read_rounds()
    assert {site.status for site in record.sites.values()} == {"ok"}
    sites = json.loads((folder / "simulation.json").read_text())["sites"]
    assert set(record.sites) == set(sites)
    assert len(sites) == run.num_sites
    assert record.metrics is not None
    assert record.metrics["num_images"] > 0
    assert (folder / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize("name", RUNS)
def test_ready_made_study_fits_its_data_set(tmp_path: Path, name: str) -> None:
    """Classes, structures, channels and dimensions, without a round."""
    study = load_study(STUDIES / f"{name}.toml")
    assert study.simulation is not None
    RUNS[name].write(tmp_path / "data")
    dataset = load_dataset(study, tmp_path / "data")
    check_records(dataset, study.task, study.data)
    if study.task.type == "classification":
        assert study.task.classes == dataset.classes
    record = dataset.records[0]
    assert record.read_image().ndim == study.data.dimensions
    assert study.data.channels == 1
    assert set(study.data.views) in (set(), {"pre", "post_1", "post_2"})
    section = study.simulation.partition
    if section.method == "natural":
        assert all(record.columns[section.column] for record in dataset.records)
