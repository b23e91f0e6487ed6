"""A data set: a folder a class, holding PATIENT_ANYTHING.png."""

from pathlib import Path

from medfed.client.data.records import SourceDataset
from medfed.common.errors import DataError
from medfed.common.plugins import Section
from medfed.simulations.datasets.plugin import DatasetPlugin, Picture, dataset_of_pictures


class Options(Section):
    """`[simulation.options]`."""

    separator: str = "_"
    """What ends the patient's name in a file's name."""


def load(options: Options, folder: Path | None) -> SourceDataset:
    """Return the data set of all pictures: whose each is, and what it shows."""
    files = sorted(folder.glob("*/*.png")) if folder else []
    if not folder or not files:
        raise DataError(f"Expected --data FOLDER with CLASS/PATIENT_ANYTHING.png, got {folder}.")
    pictures = [
        Picture(file, patient=file.name.split(options.separator)[0], labels=(file.parent.name,))
        for file in files
    ]
    return dataset_of_pictures(pictures, folder)


picture_folders = DatasetPlugin(Options, load)
