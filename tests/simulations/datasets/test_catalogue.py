from pathlib import Path

import pytest

from medfed.common.download import cache_folder
from medfed.common.errors import DataError, StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.simulations.datasets.catalogue import load_dataset


def _study(**simulation: object) -> StudyConfig:
    table: dict[str, object] = {
        "study": {"name": "test"},
        "task": {"classes": ["normal", "pneumonia"]},
        "training": {"local_steps": 1},
        "simulation": simulation,
    }
    if not simulation:
        del table["simulation"]
    return parse_study(table, "test")


def test_catalogue_loads_ham10000(real_ham10000: Path) -> None:
    dataset = load_dataset(_study(dataset="ham10000"), real_ham10000)
    assert dataset.name == "HAM10000"
    assert len(dataset.records) == 1451


def test_catalogue_takes_data_of_the_study_unless_overridden(
    real_pneumoniamnist: Path, tmp_path: Path
) -> None:
    study = _study(dataset="medmnist", name="pneumoniamnist", data=str(real_pneumoniamnist))
    assert len(load_dataset(study, None).records) == 3512
    with pytest.raises(DataError, match=str(tmp_path)):
        load_dataset(study, tmp_path)


def test_catalogue_says_how_to_get_ham10000() -> None:
    with pytest.raises(DataError, match=r"--data FOLDER.*10\.7910/DVN/DBW86T"):
        load_dataset(_study(dataset="ham10000"), None)


def test_catalogue_refuses_files_for_the_phantom(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Leave out --data"):
        load_dataset(_study(dataset="phantom"), tmp_path)


def test_catalogue_refuses_a_study_without_simulation(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"\[simulation\]"):
        load_dataset(_study(), tmp_path)


def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MEDFED_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "medfed"
