"""Every real file, through dataset.toml into a store: an image or a reason, none dropped."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from medfed.client.data.archive.dataset_file import load_dataset_file
from medfed.client.data.archive.load import LoadedArchive, load_archive
from medfed.client.data.examine import examine_dataset
from medfed.client.data.prepare import prepare_store
from medfed.client.data.store import read_quarantine, verify_store
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data")
)
_KEY = b"k" * 32
_CLASSES = ("cornerstone", "deid", "other")


def study(dimensions: int) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "every"},
            "task": {"classes": list(_CLASSES)},
            "data": {"image_size": 24, "dimensions": dimensions},
            "training": {"rounds": 1, "local_epochs": 1},
            "privacy": {"unit": "none"},
            "model": {"name": "cnn" if dimensions == 2 else "resnet18"},
        },
        "every",
    )


def load(name: str, folder: Path, dimensions: Literal[2, 3], burnt_in: str) -> LoadedArchive:
    real = REAL_DATA / name
    if not real.is_dir():
        pytest.skip(f"no real data at {real}; set MEDFED_TEST_DATA")
    # Every folder is of one class or another.
    kinds = [path.name for path in sorted(real.iterdir()) if path.is_dir()]
    renamed = "\n".join(f'"{kind}" = "{_CLASSES[i % 3]}"' for i, kind in enumerate(kinds))
    patient = "header" if name == "dicom" else "folder"
    path = folder / "dataset.toml"
    path.write_text(
        f'name = "every"\n[archive]\nfolders = ["{real}"]\npatient = "{patient}"\n'
        f'[deidentify]\nburnt_in = "{burnt_in}"\n'
        f"[labels.folders]\nlevel = 1\n[labels.rename]\n{renamed}\n"
    )
    task = study(dimensions).task
    return load_archive(
        load_dataset_file(path), task, dimensions=dimensions, pseudonym_key=_KEY, workers=2
    )


def check(loaded: LoadedArchive, folder: Path, dimensions: int) -> None:
    config = study(dimensions)
    store = prepare_store(
        loaded.dataset,
        config.task,
        config.data,
        parent=folder / "stores",
        pseudonym_key=_KEY,
        workers=2,
        digest_again=loaded.digest_again,
    )
    verify_store(store)
    refused = read_quarantine(store.folder)
    assert len(store) + len(refused) == len(loaded.dataset.records) + len(loaded.dataset.unusable)
    assert len(store) > 5
    # No file is lost: it is of a series that gave an image or a reason, or is listed itself.
    inventory = loaded.chosen.inventory
    given = {str(path) for series in inventory.series for path in series.files}
    listed = given | {one.path for one in inventory.unusable}
    assert len(listed) == inventory.num_files
    told = " ".join(
        [record.source for record in loaded.dataset.records] + [row["source"] for row in refused]
    )
    assert all(str(series.files[0]) in told for series in inventory.series)
    assert all(len(row["reason"]) > 40 for row in refused)
    assert np.asarray(store.images_NCHW).std() > 10


@pytest.mark.parametrize(("name", "dimensions"), [("dicom", 3), ("nifti_quirks", 3)])
def test_every_volume_is_prepared_or_refused(
    tmp_path: Path, name: str, dimensions: Literal[2, 3]
) -> None:
    check(load(name, tmp_path, dimensions, "refuse"), tmp_path, dimensions)


@pytest.mark.slow
@pytest.mark.parametrize("burnt_in", ["refuse", "mask"])
def test_every_image_is_prepared_or_refused(tmp_path: Path, burnt_in: str) -> None:
    check(load("dicom", tmp_path, 2, burnt_in), tmp_path, 2)


def test_every_image_goes_through_the_check(tmp_path: Path) -> None:
    loaded = load("dicom", tmp_path, 2, "keep")
    found = examine_dataset(loaded.dataset, study(2), workers=2)
    assert found.num_images == len(loaded.dataset.records)
    text = " ".join(finding.text for finding in found.findings)
    assert f"{len(loaded.dataset.unusable)} file(s) give no image" in text
