"""Files become what the model was trained on; whatever cannot be used is refused with a way out."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medfed.client.batches import BatchLoader
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.site_data import ImageSet
from medfed.common.errors import DataError, RunError, StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.common.tasks import make_task
from medfed.simulations.explaining.load import (
    load_examination,
    load_trained,
    model_inputs,
)

VIEWS = {"views": ["frontal", "lateral"]}
TABULAR = {"tabular": {"age": {"mean": 50, "std": 20}, "sex": {"values": ["female", "male"]}}}


def study(**data: Any) -> StudyConfig:
    fusion = {"fusion": "late"} if "tabular" in data and "views" in data else {}
    return parse_study(
        {
            "study": {"name": "tiny"},
            "task": {"classes": ["a", "b"]},
            "model": {"name": "cnn", **fusion},
            "data": {"image_size": 16, **data},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
        },
        "the test's study",
    )


def picture(path: Path, *shape: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return str(path)


def volume(path: Path, shape: tuple[int, ...] = (18, 20, 16)) -> str:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.5, 2.0, 1.0])), path)
    return str(path)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ({}, (40, 30)),
        ({}, (40, 30, 3)),
        ({"channels": 3, "mean": 0.6, "std": 0.2}, (20, 20, 3)),
        ({"channels": 2}, (20, 20, 2)),
        ({"channels": 4}, (20, 20, 4)),
    ],
)
def test_model_inputs_are_those_of_training(
    tmp_path: Path, data: dict[str, Any], shape: tuple[int, ...]
) -> None:
    config = study(**data)
    file = picture(tmp_path / "image.png", *shape)
    pixels = np.asarray(Image.open(file))
    examination = load_examination([file], [], config)
    [images] = model_inputs(examination, config)
    [expected] = trained_inputs(config, tmp_path, record(read_image=lambda: pixels))
    assert torch.equal(images, expected)
    assert examination.views == ("image",)


@pytest.mark.parametrize("present", [("frontal", "lateral"), ("lateral",)])
def test_model_inputs_of_views_and_columns_are_those_of_training(
    tmp_path: Path, present: tuple[str, ...]
) -> None:
    config = study(**VIEWS, **TABULAR)
    files = {view: picture(tmp_path / f"{view}.png", 24, 24, seed=len(view)) for view in present}
    pixels = {view: np.asarray(Image.open(file)) for view, file in files.items()}
    examination = load_examination(
        [f"{view}={file}" for view, file in files.items()], ["age=71", "sex=male"], config
    )
    source = record(
        read_image=lambda: pixels[present[0]],
        views={view: lambda view=view: pixels[view] for view in present},  # type: ignore[misc]
        columns={"age": "71", "sex": "male"},
    )
    for own, expected in zip(
        model_inputs(examination, config), trained_inputs(config, tmp_path, source), strict=True
    ):
        assert torch.equal(own, expected)
    assert examination.present.tolist() == [int(view in present) for view in VIEWS["views"]]


def record(**fields: Any) -> SourceRecord:
    plain = {"record_id": "r", "patient_id": "p", "labels": ("a",), "source": "the record"}
    return SourceRecord(**{**plain, **fields})


def trained_inputs(
    config: StudyConfig, folder: Path, source: SourceRecord
) -> tuple[torch.Tensor, ...]:
    """What a site's batch of the same image is."""
    dataset = SourceDataset(
        name="d",
        licence="",
        citation="",
        classes=("a", "b"),
        records=(source,),
        digest="0",
        dimensions=config.data.dimensions,
    )
    store = prepare_store(
        dataset, config.task, config.data, parent=folder / "stores", pseudonym_key=b"k"
    )
    zero = np.zeros(1, dtype=np.int64)
    loader = BatchLoader(
        ImageSet((store,), zero, zero), make_task(config), config, torch.device("cpu")
    )
    return loader.evaluation_batch(zero).inputs


def test_load_examination_keeps_the_size_of_a_volume_in_patches(tmp_path: Path) -> None:
    table = study().model_dump(mode="json", exclude_none=True)
    table["task"] |= {"type": "segmentation"}
    table["model"] |= {"name": "unet"}
    table["data"] |= {"dimensions": 3, "fit": "patch", "spacing_mm": 1.0}
    config = parse_study(table, "the test's study")
    examination = load_examination([volume(tmp_path / "v.nii.gz")], [], config)
    # Voxels of 1 x 1.5 x 2 mm become cubes of 1 mm.
    assert examination.pixels.shape == (1, 18, 30, 32)
    assert len(examination.sha256["image"]) == 64


@pytest.mark.parametrize(
    ("data", "images", "columns", "error", "message"),
    [
        ({}, ["missing.png"], [], DataError, "found none"),
        ({}, ["a.png", "a.png"], [], StudyError, "one --image"),
        ({}, ["v.nii.gz"], [], DataError, "expected PNG"),
        ({}, ["scan.dcm"], [], DataError, "DICOM"),
        ({}, ["broken.png"], [], DataError, "cannot be decoded"),
        ({}, ["deep.png"], [], DataError, "8 bits"),
        ({"channels": 4}, ["rgb.png"], [], None, ""),
        ({"dimensions": 3}, ["a.png"], [], DataError, "expected a volume"),
        (VIEWS, ["a.png"], [], StudyError, "VIEW=FILE"),
        (VIEWS, ["oblique=a.png"], [], StudyError, "frontal, lateral"),
        (VIEWS, ["frontal=a.png", "frontal=a.png"], [], StudyError, "at most once"),
        (VIEWS, [], [], StudyError, "got none"),
        (TABULAR, ["a.png"], ["weight=80"], StudyError, "age, sex"),
        (TABULAR, ["a.png"], ["age"], StudyError, "NAME=VALUE"),
        ({}, ["a.png"], ["age=3"], StudyError, "none"),
    ],
)
def test_load_examination_refuses_what_does_not_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Any],
    images: list[str],
    columns: list[str],
    error: type[Exception] | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png", 20, 20)
    picture(tmp_path / "rgb.png", 20, 20, 3)
    volume(tmp_path / "v.nii.gz")
    (tmp_path / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(tmp_path / "deep.png")
    config = study(**data)
    if error is None:
        # Too few channels: the luma stands for all of them, as in a store.
        assert load_examination(images, columns, config).pixels.shape[0] == 4
        return
    with pytest.raises(error, match=message):
        load_examination(images, columns, config)


def test_load_trained_refuses_what_is_no_finished_run(tmp_path: Path, make_run: Any) -> None:
    with pytest.raises(RunError, match="run folder"):
        load_trained(tmp_path)
    run = make_run(task={"classes": ["a", "b"]}, data={"image_size": 16})
    (run / "arms" / "federated" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="--resume"):
        load_trained(run)


def test_load_trained_has_the_run_s_weights_and_not_the_seed_s(make_run: Any) -> None:
    from medfed.common.models import build_model
    from medfed.common.state_dicts import digest, read_state
    from medfed.server.checkpoint import write_weights

    run = make_run(task={"classes": ["a", "b"]}, data={"image_size": 16})
    fresh = read_state(build_model(load_trained(run).study, 2))
    moved = {name: array + 1 for name, array in fresh.items()}
    write_weights(run / "arms" / "federated" / "model.safetensors", moved)
    trained = load_trained(run)
    assert digest(read_state(trained.model)) == digest(moved) == trained.weights_sha256
    assert not trained.model.training


def test_load_trained_needs_no_weights_file(make_run: Any, tmp_path: Path) -> None:
    run = make_run(task={"classes": ["a", "b"]}, data={"image_size": 16})
    text = (run / "study.toml").read_text()
    gone = f'weights = "{tmp_path}/gone.pth"\nfreeze = "backbone"'
    text = text.replace('weights = ""', gone).replace('\nfreeze = "none"', "")
    (run / "study.toml").write_text(text)
    trained = load_trained(run)
    assert trained.study.model.freeze == "backbone"
    assert trained.study.model.weights.endswith("gone.pth")
