"""From a study to its data set: which loader, and where its files are."""

from importlib import import_module
from pathlib import Path

from medfed.client.data.records import SourceDataset
from medfed.common.download import cache_folder
from medfed.common.errors import DataError, StudyError
from medfed.common.study import SimulationSection, StudyConfig
from medfed.simulations.datasets.plugin import load_plugin_dataset


def load_dataset(study: StudyConfig, data: Path | None) -> SourceDataset:
    """Return the data set that `[simulation]` names, with its `[simulation.options]`.

    Args:
        study: The study.
        data: Folder or file of the data set (`--data`); overrides `simulation.data`, which is
            taken relative to the working directory unless the study file's reader resolved it.

    Raises:
        StudyError: The study has no `[simulation]`, or files are given for the phantom.
        DataError: The data set's files are missing or malformed; says what to place where.
    """
    simulation = study.simulation
    if simulation is None:
        raise StudyError(
            f"Expected a [simulation] section in study {study.study.name}, got none. "
            'Add it, e.g. dataset = "phantom".'
        )
    path = data if data is not None else Path(simulation.data) if simulation.data else None
    if simulation.is_plugin:
        return load_plugin_dataset(study, path)
    if simulation.dataset == "phantom":
        return _phantom(study, simulation, path)
    if simulation.dataset == "medmnist":
        from medfed.simulations.datasets.medmnist import load_medmnist

        return load_medmnist(simulation.name, path, cache_folder())
    loader = import_module(f"medfed.simulations.datasets.{simulation.dataset}")
    if path is None:
        raise DataError(
            f"Expected --data FOLDER with the data set {simulation.dataset}, got none. "
            f"{loader.HOW_TO_GET}"
        )
    load = getattr(loader, f"load_{simulation.dataset}")
    dataset: SourceDataset = load(path, **simulation.options.chosen())
    return dataset


def _phantom(study: StudyConfig, simulation: SimulationSection, path: Path | None) -> SourceDataset:
    if path is not None:
        raise StudyError(
            f'Expected no files with simulation.dataset = "phantom", which is generated, got '
            f"{path}. Leave out --data and simulation.data, or name another data set."
        )
    from medfed.simulations.phantom import load_phantom

    return load_phantom(simulation.phantom, image_size=study.data.image_size, seed=study.study.seed)
