"""Whole runs of the families: pretrained and frozen parts, words, classes that a site lacks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.ledger import Ledger
from medfed.common.models import build_model
from medfed.common.state_dicts import read_state
from medfed.common.study_file import load_study
from medfed.server.records import ArmFolder
from medfed.simulations.phantom import load_phantom

TINY_REPORT = """
[study]
name = "tiny-report"
seed = 3
[task]
type = "report"
[task.report]
max_words = 15
min_patients = 3
beam_size = 2
[task.report.findings]
nodule = ["nodule", "opacity"]
[data]
image_size = 16
[model]
name = "report_lstm"
embedding_size = 6
hidden_size = 8
attention_size = 4
[training]
rounds = 2
local_epochs = 1
batch_size = 8
[federation]
min_sites = 2
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
[simulation.phantom]
num_patients = 90
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
"""


def write(tmp_path: Path, text: str, name: str = "study.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def arm_of(run: Path) -> ArmFolder:
    return ArmFolder(run / "arms" / "federated")


def weights_of(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "arms" / "federated" / "model.safetensors")


def save_start(study_file: Path, path: Path, seed: int) -> dict[str, np.ndarray]:
    """Write some weights of the study's network, as another training would have left them."""
    study = load_study(study_file, [f"study.seed={seed}"])
    state = read_state(build_model(study, len(study.task.classes)))
    save_file(state, path)
    return state


FROZEN = [
    *("--set", 'model.freeze="backbone"', "--set", 'model.weights="start.safetensors"'),
    *("--set", "training.rounds=1"),
]


def test_a_frozen_backbone_never_travels_and_stays_as_the_file_has_it(
    medfed, tiny, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    start = save_start(tiny, tiny.parent / "start.safetensors", seed=77)
    medfed("simulate", tiny, "--out", tmp_path / "run", *FROZEN)
    final = weights_of(tmp_path / "run")
    moved = {name for name, array in start.items() if not np.array_equal(array, final[name])}
    assert moved == {"classifier.3.weight", "classifier.3.bias"}
    site = next(iter(arm_of(tmp_path / "run").read_rounds()[0].sites.values()))
    travelled = 4 * (start["classifier.3.weight"].size + 4)
    assert travelled < site.bytes_up < travelled + 100_000  # metric sums are the rest
    study = json.loads((tmp_path / "run" / "arms" / "federated" / "study.json").read_text())
    assert study["model"]["weights"] == "start.safetensors"
    assert len(study["model"]["weights_sha256"]) == 64


def test_weights_are_found_by_their_hash_and_another_file_is_refused(
    medfed, tiny, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    save_start(tiny, tiny.parent / "start.safetensors", seed=77)
    pinned = ["--set", f'model.weights_sha256="{"0" * 64}"']
    done = medfed("simulate", tiny, "--out", tmp_path / "run", *FROZEN, *pinned, code=2)
    assert "has SHA-256" in done.stderr
    assert "0" * 64 in done.stderr
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused_with_a_list(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tiny.parent / "start.pth")
    options = ["--set", 'model.weights="start.pth"']
    done = medfed("simulate", tiny, "--out", tmp_path / "run", *options, code=2)
    assert "conv1.weight: expected nothing of this name, got [3, 3]" in done.stderr
    assert "features.0.weight: expected [32, 1, 3, 3], got nothing" in done.stderr


def test_a_missing_weights_file_is_named(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = ["--set", 'model.weights="nowhere.pth"']
    done = medfed("simulate", tiny, "--out", tmp_path / "run", *options, code=2)
    assert "model.weights: expected a file at" in done.stderr


def test_vocabulary_is_agreed_recorded_and_kept_on_resume(medfed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    study = write(tmp_path, TINY_REPORT)
    medfed("simulate", study, "--out", tmp_path / "run")
    arm = arm_of(tmp_path / "run")
    vocabulary = json.loads((arm.folder / "vocabulary.json").read_text())
    assert vocabulary["words"] == sorted(set(vocabulary["words"]))
    assert "." in vocabulary["words"]
    assert set(vocabulary["sites"]) == {"scanner-1", "scanner-2", "scanner-3"}
    for facts in vocabulary["sites"].values():
        assert facts["status"] == "ok"
        assert 0 < facts["words"] <= len(vocabulary["words"])
        assert facts["bytes"] > 0
    assert weights_of(tmp_path / "run")["output.weight"].shape[0] == len(vocabulary["words"]) + 4
    # Killed after round 1: what was agreed is not asked again.
    (arm.folder / "outcome.json").unlink()
    before = (arm.folder / "vocabulary.json").stat().st_mtime_ns
    medfed("simulate", "--resume", tmp_path / "run")
    assert (arm.folder / "vocabulary.json").stat().st_mtime_ns == before


def planted(section, *, image_size: int, seed: int) -> SourceDataset:  # type: ignore[no-untyped-def]
    """The phantom, with one patient's name and a rare diagnosis in one report."""
    dataset = load_phantom(section, image_size=image_size, seed=seed)
    records = list(dataset.records)
    first: SourceRecord = records[0]
    text = f"{first.report} Plantedname has zebraitis."
    records[0] = SourceRecord(**{**vars(first), "report": text})
    return SourceDataset(**{**vars(dataset), "records": tuple(records), "digest": "planted"})


@pytest.mark.parametrize("noise", ["", "words_noise_multiplier = 1.0"])
def test_rare_words_never_leave_a_site(medfed, tmp_path, monkeypatch, noise) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("medfed.simulations.phantom.load_phantom", planted)
    text = TINY_REPORT.replace("min_patients = 3", f"min_patients = 3\n{noise}")
    medfed("simulate", write(tmp_path, text), "--out", tmp_path / "run")
    arm = arm_of(tmp_path / "run")
    assert len(json.loads((arm.folder / "vocabulary.json").read_text())["words"]) > 0
    for path in (tmp_path / "run").rglob("*"):
        # The report shows example texts of a simulation; nothing else holds any.
        if path.is_file() and "examples" not in path.parts and path.name != "report.html":
            assert b"zebraitis" not in path.read_bytes(), path
            assert b"lantedname" not in path.read_bytes(), path


PRIVATE_WORDS = """
[privacy]
unit = "patient"
sample_rate = 0.3
target_delta = 1e-3
"""


def test_words_with_noise_are_charged_before_the_first_round(medfed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = TINY_REPORT.replace('[privacy]\nunit = "none"\n', PRIVATE_WORDS)
    text = text.replace("local_epochs = 1\n", "local_steps = 2\n")
    text = text.replace("arms = [", "max_epsilon = 50\narms = [")
    study = write(tmp_path, text)
    refused = medfed("simulate", study, "--out", tmp_path / "refused", code=2)
    assert "no epsilon would cover the words" in refused.stderr
    noisy = text.replace("min_patients = 3", "min_patients = 1\nwords_noise_multiplier = 1.0")
    medfed("simulate", write(tmp_path, noisy), "--out", tmp_path / "run")
    arm = arm_of(tmp_path / "run")
    for site in ("scanner-1", "scanner-2", "scanner-3"):
        spends = [e.spend for e in Ledger(arm.folder / "sites" / site / "state").entries()]
        assert [spend.kind for spend in spends] == ["words", "training", "training"]
        assert spends[0].extra_delta == 1e-6
        answers = json.loads((arm.folder / "vocabulary.json").read_text())["sites"][site]
        assert 0 < answers["epsilon"] < arm.read_rounds()[0].sites[site].epsilon


def test_a_public_vocabulary_is_taken_as_it_is(medfed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path, "lungs\nnodule\n.\n", "words.txt")
    text = TINY_REPORT.replace("min_patients = 3", 'vocabulary = "words.txt"')
    medfed("simulate", write(tmp_path, text), "--out", tmp_path / "run")
    vocabulary = json.loads((arm_of(tmp_path / "run").folder / "vocabulary.json").read_text())
    assert vocabulary == {"words": ["lungs", "nodule", "."], "sites": {}}
    bad = TINY_REPORT.replace("min_patients = 3", 'vocabulary = "bad.txt"')
    write(tmp_path, "lungs\nTwo Words\n", "bad.txt")
    done = medfed("simulate", write(tmp_path, bad), "--out", tmp_path / "bad", code=2)
    assert "word 2" in done.stderr


def test_a_class_that_a_site_lacks_is_left_out_of_its_figures(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Skewed so far that sites lack classes: they train all the same, on those that they have."""
    text = tiny.read_text().replace('method = "natural"\ncolumn = "scanner"', "")
    text += 'method = "dirichlet"\nnum_sites = 3\nalpha = 0.05\nmin_patients = 10\n'
    text = text.replace('unit = "patient"', "")
    study = write(tmp_path, text, "skewed.toml")
    medfed("simulate", study, "--out", tmp_path / "run")
    sites = json.loads((tmp_path / "run" / "simulation.json").read_text())["sites"]
    last = arm_of(tmp_path / "run").read_rounds()[-1]
    lacking = 0
    for name, facts in sites.items():
        metrics = last.sites[name].metrics
        assert last.sites[name].status == "ok"
        for label, count in zip(
            load_study(study).task.classes, facts["test"]["labels"], strict=True
        ):
            everything = count == facts["test"]["images"]
            assert (f"auroc/{label}" in metrics) == (count > 0 and not everything)
            lacking += count == 0
    assert lacking > 0
    assert set(last.metrics) >= {"auroc", "loss"}


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["model.name=vgg16"], ["vgg16", "16", "32"]),
        (["model.name=inception_v3", "data.image_size=64"], ["inception_v3", "75"]),
        (["model.name=unet"], ['does not fit task.type = "classification"', "vgg16"]),
        (["model.name=vgg16", "data.dimensions=3"], ["is for images", "resnet18"]),
        (["model.freeze=feature.*"], ["model.freeze", "features.0.weight"]),
        (["model.freeze=*"], ["leaves nothing to train"]),
        (["model.widths=[8]"], ["at least two widths"]),
        (["data.fit=patch"], ['data.fit = "patch" is for segmentation']),
        (["model.fusion=late"], ["needs data.views"]),
        (["model.weights=https://example.org/w.pth"], ["weights_sha256", "Pin it"]),
        (["data.tabular.age={mean=1}"], ["expected mean and std (a number), or values"]),
        (["task.loss=dice"], ["is for segmentation"]),
        (["augmentation.multiplicity=3"], ["versions of an image would be the same"]),
        (["task.mode=ordinal", "task.report.beam_size=2"], ["task.report with type"]),
    ],
)
def test_an_impossible_model_is_refused_before_data_is_read(
    medfed, tiny, tmp_path, options, fragments
) -> None:  # type: ignore[no-untyped-def]
    arguments = [part for option in options for part in ("--set", option)]
    done = medfed("simulate", tiny, "--out", tmp_path / "run", *arguments, code=2)
    for fragment in fragments:
        assert fragment in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "run").exists()


def test_images_of_other_channels_than_the_studys_are_refused_by_name(
    medfed, tiny, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "ham"
    (folder / "images").mkdir(parents=True)
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    for number in range(24):
        pixels = np.zeros((20, 20, 3), dtype=np.uint8)
        from PIL import Image

        Image.fromarray(pixels).save(folder / "images" / f"ISIC_{number}.jpg")
        rows.append(f"L{number},ISIC_{number},{'nv' if number % 2 else 'mel'},,,,,a")
    (folder / "HAM10000_metadata").write_text("\n".join(rows) + "\n")
    options = [
        *("--set", "simulation.dataset=ham10000", "--set", 'task.classes=["nv","mel"]'),
        *("--set", "data.channels=4", "--set", "simulation.partition.column=dataset"),
    ]
    done = medfed("simulate", tiny, "--data", folder, "--out", tmp_path / "run", *options, code=3)
    assert "expected 4 channel(s), got 3" in done.stderr
    assert "Set data.channels" in done.stderr
