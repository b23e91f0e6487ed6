"""The ready-made studies outside chest and breast radiology run a round on tiny official files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder

sys.path.insert(0, str(Path(__file__).parent / "datasets"))

from layouts_other import (
    write_aptos,
    write_brats,
    write_diabetic_retinopathy,
    write_isic2019,
    write_oct_amd,
    write_partitions,
    write_refuge,
)

STUDIES = Path(__file__).parents[2] / "studies"


def _write_fets(folder: Path) -> None:
    """Two institutions that take part, and one with too few cases."""
    write_brats(folder, range(16), shape=(20, 22, 18))
    write_partitions(folder, {number: number // 7 for number in range(16)})


# The study, the files, what else to set, and how many sites there are.
RUNS: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...], int]] = {
    "isic2019": ("isic2019", lambda folder: write_isic2019(folder, 9), (), 6),
    "brats": ("brats", _write_fets, ("data.image_size=16", "federation.min_sites=2"), 2),
    "aptos": ("diabetic_retinopathy", lambda folder: write_aptos(folder, 80), (), 4),
    "kaggle": (
        "diabetic_retinopathy",
        lambda folder: write_diabetic_retinopathy(folder, 40, 20),
        ("simulation.dataset=diabetic_retinopathy",),
        4,
    ),
    "glaucoma": ("glaucoma", lambda folder: write_refuge(folder, 8, 32, 40), (), 4),
    "disc_cup": ("glaucoma_disc_cup", lambda folder: write_refuge(folder, 8, 32, 40), (), 4),
    "oct": ("macular_degeneration", lambda folder: write_oct_amd(folder, 14, 8), (), 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_ready_made_study_runs_a_round_on_official_files(medfed, tmp_path, run) -> None:  # type: ignore[no-untyped-def]
    name, write, others, num_sites = RUNS[run]
    data, folder = tmp_path / "data", tmp_path / "run"
    write(data)
    options = [
        "training.rounds=1",
        "training.batch_size=2",
        'simulation.arms=["federated"]',
        *(() if run == "brats" else ("data.image_size=64",)),
        *others,
    ]
    arguments = [part for option in options for part in ("--set", option)]
    medfed("simulate", STUDIES / f"{name}.toml", "--data", data, "--out", folder, *arguments)
    [record] = ArmFolder(folder / "arms" / "federated").read_rounds()
    assert {site.status for site in record.sites.values()} == {"ok"}
    sites = json.loads((folder / "simulation.json").read_text())["sites"]
    assert set(record.sites) == set(sites)
    assert len(sites) == num_sites
    assert record.metrics is not None
    assert record.metrics["num_images"] > 0
    assert (folder / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize(
    "name", sorted({name for name, *_ in RUNS.values()}), ids=lambda name: str(name)
)
def test_ready_made_study_fits_its_data_set(tmp_path: Path, name: str) -> None:
    """Classes, structures, channels and dimensions, without a round."""
    from medfed.client.data.checks import check_records
    from medfed.simulations.datasets.catalogue import load_dataset

    study = load_study(STUDIES / f"{name}.toml")
    write = next(write for study_name, write, *_ in RUNS.values() if study_name == name)
    write(tmp_path)
    dataset = load_dataset(study, tmp_path)
    check_records(dataset, study.task, study.data)
    if study.task.type == "classification":
        assert study.task.classes == dataset.classes
    pixels = dataset.records[0].read_image()
    assert pixels.shape[study.data.dimensions :] in ((study.data.channels,), ())
    section = study.simulation.partition if study.simulation else None
    if section and section.method == "natural":
        assert section.column in dataset.records[0].columns
