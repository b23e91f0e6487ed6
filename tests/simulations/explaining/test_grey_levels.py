"""data.harmonise: a file is explained as training saw the images of the site that is named."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from medfed.client.batches import BatchLoader
from medfed.client.data.site_data import load_site_data
from medfed.client.site import load_site
from medfed.common.errors import RunError
from medfed.common.study_file import load_study
from medfed.common.tasks import Batch
from medfed.server.records import STATISTICS_FILE
from medfed.simulations.explaining.grey_levels import AS_THEY_ARE, harmonised
from medfed.simulations.explaining.load import Examination, load_examination, model_inputs
from medfed.simulations.study import Options, run_study

STUDY = """
[study]
name = "levels"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
harmonise = "histogram"
[statistics]
collect = true
min_count = 5
[training]
rounds = 1
local_steps = 2
batch_size = 8
[federation]
min_sites = 2
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
resamples = 2
[simulation.phantom]
num_patients = 60
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
"""
Seen = dict[int, Tensor]


@pytest.fixture(scope="module")
def harmonised_run(prepared_run: Callable[..., Path]) -> tuple[Path, Seen]:
    """A finished run, and each training image as the network was shown it, by row of the store."""
    folder, seen = prepared_run(STUDY), {}
    make = BatchLoader.training_batch

    def watched(self: BatchLoader, chosen: npt.NDArray[np.int64], rng: Any) -> Batch:
        batch = make(self, chosen, rng)
        for row, image in zip(self._data.row_index[chosen], batch.inputs[0], strict=True):
            seen[int(row)] = image.clone()
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchLoader, "training_batch", watched)
        run_study(folder, Options(workers=1))
    return folder, seen


def arm_of(run: Path) -> Path:
    return run / "arms" / "federated"


def trained_on(run: Path, site: str, seen: Seen) -> tuple[int, npt.NDArray[np.uint8]]:
    """A row of the store that `site` trained on, and its pixels as they lie there."""
    study = load_study(run / "study.toml")
    train = load_site_data(load_site(arm_of(run) / "sites" / site / "site.toml"), study).train
    row = next(int(row) for row in train.row_index if int(row) in seen)
    return row, np.array(train.stores[0].images_NCHW[row, 0])


def shown(run: Path, pixels: npt.NDArray[np.uint8], site: str, arm: Path | None = None) -> Any:
    """The examination of a file with these pixels, as `medfed explain --site` reads it."""
    file = run.parent / "scan.png"
    Image.fromarray(pixels).save(file)
    study = load_study(run / "study.toml")
    return harmonised(load_examination([str(file)], (), study), study, arm or arm_of(run), site)


def tensor(run: Path, examination: Examination) -> Tensor:
    [images] = model_inputs(examination, load_study(run / "study.toml"))
    return images[0]


def with_cards(run: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the arm without its sites' folders: what a coordinator has; its cards changed."""
    shutil.copytree(arm_of(run), folder, ignore=shutil.ignore_patterns("sites"))
    path = folder / STATISTICS_FILE
    table = json.loads(path.read_text())
    change(table["sites"])
    path.write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize("site", ["scanner-1", "scanner-2", "scanner-3"])
def test_a_file_is_the_tensor_that_training_saw(
    harmonised_run: tuple[Path, Seen], site: str
) -> None:
    run, seen = harmonised_run
    row, pixels = trained_on(run, site, seen)
    state = arm_of(run) / "sites" / site / "state"
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    examination = shown(run, pixels, site)
    assert torch.equal(tensor(run, examination), seen[row])
    assert site in examination.grey_levels
    # The table is the site's own, and has something to do.
    others = {"scanner-1", "scanner-2", "scanner-3"} - {site}
    for other in ("", *others):
        assert not torch.equal(tensor(run, shown(run, pixels, other)), seen[row])
    # Nothing is released or charged.
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_the_same_table_comes_from_a_hospital_s_folder_and_from_its_card(
    harmonised_run: tuple[Path, Seen], tmp_path: Path
) -> None:
    run, seen = harmonised_run
    row, pixels = trained_on(run, "scanner-2", seen)
    shutil.copytree(arm_of(run) / "sites" / "scanner-2", tmp_path / "hospital")
    file = str(tmp_path / "hospital" / "site.toml")
    by_card = with_cards(run, tmp_path / "by-card", lambda cards: None)
    # It joined late: the coordinator has no card of it.
    by_answer = with_cards(run, tmp_path / "by-answer", lambda cards: cards.pop("scanner-2"))
    shutil.rmtree(tmp_path / "hospital" / "state" / "personal", ignore_errors=True)
    for site, arm in ((file, arm_of(run)), ("scanner-2", by_card), (file, by_answer)):
        assert torch.equal(tensor(run, shown(run, pixels, site, arm)), seen[row]), arm
    with pytest.raises(RunError, match=r"scanner-2 said nothing .* \(scanner-1, scanner-3\)"):
        shown(run, pixels, "scanner-2", by_answer)


def test_a_site_that_released_no_histogram_is_not_mapped_as_in_training(
    harmonised_run: tuple[Path, Seen], tmp_path: Path
) -> None:
    run, seen = harmonised_run
    _, pixels = trained_on(run, "scanner-2", seen)

    def withhold(cards: dict[str, Any]) -> None:
        values: dict[str, Sequence[Any]] = cards["scanner-2"]["values"]
        values["intensities"] = [[None] * len(values["intensities"][0])]

    arm = with_cards(run, tmp_path / "arm", withhold)
    examination = shown(run, pixels, "scanner-2", arm)
    assert np.array_equal(examination.pixels[0], pixels)
    assert "released no histogram" in examination.grey_levels


def test_the_command_says_what_it_did_to_grey_levels(
    harmonised_run: tuple[Path, Seen], medfed: Callable[..., Any]
) -> None:
    run, seen = harmonised_run
    _, pixels = trained_on(run, "scanner-2", seen)
    Image.fromarray(pixels).save("scan.png")
    said = medfed("explain", run, "--image", "scan.png", "--out", "plain").stdout
    assert f"Grey levels  {AS_THEY_ARE}" in said
    asked = ("--image", "scan.png", "--site", "scanner-2", "--out", "named")
    assert "as the images of site scanner-2 were" in medfed("explain", run, *asked).stdout
    for folder, words in (("plain", "no site was named"), ("named", "site scanner-2 were")):
        assert words in (Path(folder) / "explanation.html").read_text()
        facts = json.loads((Path(folder) / "explanation.json").read_text())
        assert words in facts["grey_levels"]
        assert facts["site"] == ""  # all sites use the global model
    asked = ("--image", "scan.png", "--site", "north")
    assert "scanner-1, scanner-2, scanner-3" in medfed("explain", run, *asked, code=6).stderr
