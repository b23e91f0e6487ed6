"""Public data sets as a hospital would have them: dataset.toml gives what their loaders give."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from medfed.client.data.archive.dataset_file import load_dataset_file
from medfed.client.data.archive.load import load_archive
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.study import TaskSection
from medfed.simulations.datasets.busi import load_busi
from medfed.simulations.datasets.msd import load_msd

REAL_DATA = Path(
    os.environ.get("MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data")
)


def archive(
    folder: Path, text: str, classes: tuple[str, ...], dimensions: Literal[2, 3]
) -> SourceDataset:
    path = folder / "dataset.toml"
    path.write_text(text)
    task = TaskSection(type="segmentation", classes=classes)
    file = load_dataset_file(path)
    return load_archive(file, task, dimensions=dimensions, pseudonym_key=b"k" * 32).dataset


def real(name: str) -> Path:
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDFED_TEST_DATA")
    return folder


def by_file(dataset: SourceDataset) -> dict[str, SourceRecord]:
    return {Path(record.source).name: record for record in dataset.records}


def test_pictures_with_masks_are_those_of_the_loader(tmp_path: Path) -> None:
    root = real("busi")
    text = f"""
name = "our ultrasound"
[archive]
folders = ["{root}/Dataset_BUSI_with_GT"]
patient = "name"
patient_pattern = '/(\\w+ \\(\\d+\\))'
[deidentify]
burnt_in = "keep"
[[labels.masks]]
kind = "png"
pattern = "*/{{stem}}_mask*.png"
"""
    ours, theirs = by_file(archive(tmp_path, text, ("tumour",), 2)), by_file(load_busi(root))
    assert len(ours) == 27
    assert not ours.keys() ^ theirs.keys()
    for name, record in ours.items():
        other = theirs[name]
        assert record.read_mask is not None
        assert other.read_mask is not None
        grey = np.asarray(Image.fromarray(record.read_image()).convert("L"))
        assert np.array_equal(grey, other.read_image())
        assert np.array_equal(record.read_mask(), other.read_mask())


def test_volumes_with_masks_are_those_of_the_loader(tmp_path: Path) -> None:
    root = real("msd_hippocampus")
    images = root / "TrainingSet" / "images"
    text = f"""
name = "our hippocampi"
[archive]
folders = ["{images}"]
patient = "name"
patient_pattern = '(\\d+)'
[[labels.masks]]
kind = "nifti"
folder = "{images.parent / "labels"}"
pattern = "{{stem}}*"
structures = {{ anterior = 1, posterior = 2 }}
"""
    theirs = load_msd(root)
    ours = by_file(archive(tmp_path, text, ("anterior", "posterior"), 3))
    others = {name: record for name, record in by_file(theirs).items() if name in ours}
    assert len(ours) > 10
    assert others.keys() == ours.keys()
    for name in sorted(ours)[:12]:
        one, other = ours[name], others[name]
        assert one.read_mask is not None
        assert other.read_mask is not None
        assert np.abs(one.read_image().astype(float) - np.rint(other.read_image())).max() <= 1
        assert np.array_equal(one.read_mask(), other.read_mask())
        assert one.spacing_mm == pytest.approx(other.spacing_mm)
