import inspect
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from layouts_core import write_chase_db1
from layouts_radiology import CHEXPERT_CLASSES, write_chexpert

from medfed.cli import app
from medfed.client.data.store import open_store
from medfed.common.download import cache_folder
from medfed.common.errors import DataError, StudyError
from medfed.common.study import StudyConfig, TaskSection
from medfed.common.study.simulation import DATASETS, LOADER_OPTIONS, OptionsSection
from medfed.common.study_file import parse_study, study_to_toml
from medfed.simulations.datasets.catalogue import load_dataset
from medfed.simulations.study import Options, read_run, start_study


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


def _defaults(dataset: str) -> dict[str, object]:
    """The options in the signature of a data set's loader."""
    module = import_module(f"medfed.simulations.datasets.{dataset}")
    parameters = inspect.signature(getattr(module, f"load_{dataset}")).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def test_options_are_exactly_those_in_the_loaders_signatures() -> None:
    found = {name: tuple(_defaults(name)) for name in DATASETS if name != "phantom"}
    assert {name: own for name, own in found.items() if own} == LOADER_OPTIONS
    assert set(OptionsSection.model_fields) == {one for own in found.values() for one in own}


def test_option_changes_what_uncertain_observations_are(tmp_path: Path) -> None:
    write_chexpert(tmp_path, 6)
    pneumonia, records, digests = [], [], set()
    for options in ({}, *({"uncertain": one} for one in ("zeros", "ones", "leave_out"))):
        dataset = load_dataset(_study(dataset="chexpert", options=options), tmp_path)
        pneumonia.append(sum("Pneumonia" in record.labels for record in dataset.records))
        records.append(len(dataset.records))
        digests.add(dataset.digest)
    assert pneumonia == [0, 0, 4, 0]
    assert records == [12, 12, 12, 8]
    assert len(digests) == 3


def test_option_chooses_the_observer_of_masks(tmp_path: Path) -> None:
    write_chase_db1(tmp_path)
    by_observer = [
        load_dataset(_study(dataset="chase_db1", options={"observer": number}), tmp_path)
        for number in (1, 2)
    ]
    assert by_observer[0].digest != by_observer[1].digest
    default = load_dataset(_study(dataset="chase_db1"), tmp_path)
    assert default.digest == by_observer[0].digest


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            "chexpert",
            {"uncertain": "maybe"},
            r"options\.uncertain: .*'zeros', 'ones' or 'leave_out'",
        ),
        ("chase_db1", {"observer": 3}, r"options\.observer: .*1 or 2, got 3"),
        ("chexpert", {"uncertian": "ones"}, "uncertian: unknown key. Did you mean uncertain"),
        ("chexpert", {"observer": 2}, 'option of chase_db1, .*chexpert", which has uncertain'),
        ("medmnist", {"uncertain": "ones"}, "option of chexpert, .*which has none"),
        ("phantom", {"observer": 1}, "which has none. Remove it"),
    ],
)
def test_option_that_the_loader_does_not_have_is_refused(
    dataset: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        _study(dataset=dataset, options=options)


def test_run_folder_records_the_options_of_its_study(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data")
    study = _study(dataset="chexpert", options={"uncertain": "ones"})
    start_study(study, tmp_path / "run", tmp_path / "data", Options())
    again, facts = read_run(tmp_path / "run")
    assert again == study
    assert again.to_json() != _study(dataset="chexpert").to_json()
    assert load_dataset(again, Path(facts["data"])).digest == (
        load_dataset(study, tmp_path / "data").digest
    )


def test_commands_with_data_take_options_by_set(tmp_path: Path) -> None:
    write_chexpert(tmp_path, 6)
    task = TaskSection(classes=CHEXPERT_CLASSES, mode="multilabel")
    study = _study(dataset="chexpert").model_copy(update={"task": task})
    (tmp_path / "study.toml").write_text(study_to_toml(study))
    counts = []
    for how in ("zeros", "ones"):
        out = tmp_path / how
        words = ["data", "prepare", str(tmp_path / "study.toml"), "--data", str(tmp_path)]
        words += ["--out", str(out)]
        result = CliRunner().invoke(app, [*words, "--set", f"simulation.options.uncertain={how}"])
        assert result.exit_code == 0, result.output
        [folder] = out.glob("store-*")
        store = open_store(folder)
        counts.append(int(store.labels[:, store.classes.index("Pneumonia")].sum()))
    assert counts == [0, 4]
    wrong = CliRunner().invoke(app, [*words, "--set", "simulation.options.observer=2"])
    assert isinstance(wrong.exception, StudyError)
