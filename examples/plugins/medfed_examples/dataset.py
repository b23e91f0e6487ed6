"""A data set: a folder a class, holding PATIENT_ANYTHING.png."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.common.plugins import Section
from medfed.simulations.datasets.plugin import DatasetPlugin


class Options(Section):
    """`[simulation.options]`."""

    separator: str = "_"
    """What ends the patient's name in a file's name."""


def read(file: Path) -> np.ndarray:
    """Return grey levels uint8 [H, W]."""
    return np.asarray(Image.open(file).convert("L"))


def load(options: Options, folder: Path | None) -> SourceDataset:
    """Return a record of each picture."""
    files = sorted(folder.glob("*/*.png")) if folder is not None else []
    if not files:
        raise DataError(f"Expected --data FOLDER with CLASS/PATIENT_ANYTHING.png, got {folder}.")
    digest = hashlib.sha256()
    for file in files:  # the name of what was prepared: all that the records depend on
        digest.update(f"{file.relative_to(folder)}\0{options.separator}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    records = [
        SourceRecord(
            record_id=f"{file.parent.name}/{file.name}",
            patient_id=file.name.partition(options.separator)[0],
            labels=(file.parent.name,),
            source=str(file),
            read_image=partial(read, file),
        )
        for file in files
    ]
    return SourceDataset(
        name=folder.name,
        licence="yours",
        citation="none",
        classes=tuple(sorted({record.labels[0] for record in records})),
        records=tuple(records),
        digest=digest.hexdigest(),
    )


picture_folders = DatasetPlugin(Options, load)
