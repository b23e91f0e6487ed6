"""fedbn, ditto, apfl and qfedavg in whole runs: kept through kills, reported, and what leaves."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from medfed.client.apfl import ALPHA
from medfed.client.own_parts import OwnParts
from medfed.client.releases import read_releases
from medfed.common.errors import RunError
from medfed.common.ledger import Ledger
from medfed.common.models import build_model, local_names
from medfed.common.state_dicts import read_state
from medfed.common.study_file import load_study
from medfed.server import loop
from medfed.server.records import ArmFolder
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_run_ledgers
from medfed.simulations.explaining.load import load_trained
from medfed.simulations.reporting.arms import is_training
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.study import Options, run_study
from medfed.simulations.tracking.facts import facts_of
from medfed.simulations.tracking.tensorboard_files import EVENTS_FOLDER, write_event_files

MASKS = """
[study]
name = "personal"
seed = 3
[task]
type = "segmentation"
classes = ["nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[model]
name = "unet"
norm = "batch"
widths = [4, 8]
[training]
rounds = 3
local_steps = 2
batch_size = 8
[federation]
min_sites = 2
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
resamples = 20
max_epsilon = 50
[simulation.phantom]
num_patients = 80
num_scanners = 3
max_images_per_patient = 1
[simulation.partition]
method = "natural"
column = "scanner"
"""
LABELS = MASKS.replace('type = "segmentation"\nclasses = [', 'classes = ["normal", ').replace(
    'name = "unet"\nnorm = "batch"\nwidths = [4, 8]', 'name = "cnn"'
)
PRIVATE = (
    "model.norm=group",
    "privacy.unit=patient",
    "privacy.noise_multiplier=1.0",
    "privacy.sample_rate=0.3",
    "privacy.expected_batch_size=4",
    "privacy.target_delta=1e-3",
)
# Not all sites take part in a round: what some keep is a round older than others'.
CHANGES = {
    "fedbn": ("algorithm=fedbn", "fraction=0.7"),
    "ditto": ("algorithm=ditto", "fraction=0.7"),
    "apfl": ("algorithm=apfl", "fraction=0.7", "apfl_alpha_rate=0.5"),
}
BEFORE, AFTER, AT_A_SITE = "before the checkpoint", "after the checkpoint", "once a site has kept"
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def prepare(prepared_run: Run) -> Run:
    """Makes a prepared run; an override without a section is federation's."""

    def make(*overrides: str, text: str = MASKS) -> Path:
        named = [o if "." in o.partition("=")[0] else f"federation.{o}" for o in overrides]
        return prepared_run(text, named)

    return make


def arm(folder: Path) -> ArmFolder:
    return ArmFolder(folder / "arms" / "federated")


def kept(folder: Path) -> dict[str, str]:
    """What lies at the sites, by site and round."""
    return {
        f"{path.parents[3].name} {path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((arm(folder).folder / "sites").glob("*/state/personal/*/*"))
    }


def bits(folder: Path) -> tuple[Any, ...]:
    """Weights after each round, all figures, the model, and what lies at the sites."""
    records = arm(folder).read_rounds()
    model = (arm(folder).folder / "model.safetensors").read_bytes()
    figures = [(record.metrics, record.global_metrics) for record in records]
    return [record.weights_sha256 for record in records], figures, model, kept(folder)


@pytest.mark.parametrize(
    ("algorithm", "moment"),
    [
        ("fedbn", BEFORE),
        ("ditto", AT_A_SITE),
        *(
            pytest.param(algorithm, moment, marks=pytest.mark.slow)
            for algorithm in ("fedbn", "ditto", "apfl")
            for moment in (BEFORE, AFTER, AT_A_SITE)
            if (algorithm, moment) not in (("fedbn", BEFORE), ("ditto", AT_A_SITE))
        ),
    ],
)
def test_threads_killed_and_resumed_end_in_the_bits_of_one_serial_run(
    prepare: Run, serial: Run, monkeypatch: pytest.MonkeyPatch, algorithm: str, moment: str
) -> None:
    folder = prepare(*CHANGES[algorithm])
    save, keep = loop.save_checkpoint, OwnParts.keep

    def die_at_the_server(*arguments: Any) -> None:
        if arguments[1].record.round_number == 2 and moment != AT_A_SITE:
            if moment == AFTER:
                save(*arguments)
            raise KeyboardInterrupt
        save(*arguments)

    def die_at_a_site(self: OwnParts, round_number: int, part: Any) -> None:
        keep(self, round_number, part)
        if round_number == 2 and moment == AT_A_SITE:
            raise OSError("The disk is full: nothing can be answered.")

    monkeypatch.setattr(loop, "save_checkpoint", die_at_the_server)
    monkeypatch.setattr(OwnParts, "keep", die_at_a_site)
    with pytest.raises((KeyboardInterrupt, RunError)):
        run_study(folder, Options(workers=1))
    monkeypatch.setattr(loop, "save_checkpoint", save)
    monkeypatch.setattr(OwnParts, "keep", keep)
    run_study(folder, Options(workers=2))
    assert bits(folder) == bits(serial(*CHANGES[algorithm]))
    assert kept(folder)


def test_normalisations_stay_at_the_sites(serial: Run) -> None:
    folder = serial(*CHANGES["fedbn"])
    study = load_study(folder / "study.toml")
    model = build_model(study, 3)
    local, start = local_names(model, study), read_state(model)
    sent = json.loads((arm(folder).checkpoint / "state.json").read_text())["names"]
    assert local
    assert set(local).isdisjoint(sent)
    published = load_file(arm(folder).folder / "model.safetensors")
    for name, array in start.items():
        assert np.array_equal(published[name], array) == (name in local), name
    newest = [max(found.iterdir()) for found in arm(folder).folder.glob("sites/*/state/personal/*")]
    assert len(newest) >= 2
    parts = [load_file(path) for path in newest]
    assert all(set(part) == set(local) for part in parts)
    running = next(name for name in local if name.endswith("running_mean"))
    assert not np.array_equal(parts[0][running], parts[1][running])
    with pytest.raises(RunError, match="normalisations of its own"):
        load_trained(folder)


@pytest.mark.parametrize(
    "algorithm", ["fedbn", "ditto", pytest.param("apfl", marks=pytest.mark.slow)]
)
def test_a_site_s_own_model_is_its_part_on_the_global_weights(
    serial: Run, tmp_path: Path, algorithm: str
) -> None:
    folder = serial(*CHANGES[algorithm])
    sent = load_file(arm(folder).folder / "model.safetensors")
    shutil.copytree(arm(folder).folder / "sites" / "scanner-1", tmp_path / "hospital")
    [newest] = (max(p.iterdir()) for p in (tmp_path / "hospital/state/personal").iterdir())
    part = load_file(newest)
    trained = load_trained(folder, "scanner-1")
    share = float(part.pop(ALPHA, np.array(0.0 if algorithm == "fedbn" else 1.0)))
    assert (0 < share < 1 and share != 0.5) == (algorithm == "apfl")
    assert trained.alpha == (share if algorithm == "apfl" else None)
    for name, array in read_state(trained.model).items():
        whole = array.dtype.kind == "i" or "running" in name or algorithm == "fedbn"
        own = part.get(name, sent[name])
        expected = own if whole else share * own + (1 - share) * sent[name]
        np.testing.assert_allclose(array, expected, rtol=0, atol=3e-7, err_msg=name)
    assert (trained.site, trained.model.training) == ("scanner-1", False)
    of_others = {load_trained(folder, f"scanner-{n}").weights_sha256 for n in (2, 3)}
    assert trained.weights_sha256 not in of_others
    # A hospital's own folder, wherever it is.
    there = load_trained(folder, str(tmp_path / "hospital" / "site.toml"))
    assert there.weights_sha256 == trained.weights_sha256


def test_a_site_s_own_model_explains_an_image_or_says_why_not(
    serial: Run, medfed: Any, tmp_path: Path
) -> None:
    folder = serial(*CHANGES["ditto"])
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save("scan.png")
    asked = ("--image", "scan.png", "--site")
    medfed("explain", folder, *asked, "scanner-1")
    assert "site scanner-1's own model" in Path("explanation/explanation.html").read_text()
    assert json.loads(Path("explanation/explanation.json").read_text())["site"] == "scanner-1"
    said = medfed("explain", folder, *asked, "north", code=6).stderr
    assert "scanner-1, scanner-2, scanner-3" in said
    said = medfed("explain", serial("fraction=0.7"), *asked, "scanner-1", code=6).stderr
    assert 'federation.algorithm = "fedavg"' in said
    assert "Leave --site out" in said
    shutil.copytree(arm(folder).folder / "sites" / "scanner-1", tmp_path / "hospital")
    for path in (tmp_path / "hospital/state/personal").glob("*/*"):
        path.write_bytes(path.read_bytes()[:-5])
    said = medfed("explain", folder, *asked, tmp_path / "hospital/site.toml", code=6).stderr
    assert "Site scanner-1 keeps no part of this run" in said


@pytest.mark.parametrize(
    "algorithm", ["fedbn", "ditto", pytest.param("apfl", marks=pytest.mark.slow)]
)
def test_bootstrap_and_figures_are_of_the_same_models(serial: Run, algorithm: str) -> None:
    folder = serial(*CHANGES[algorithm])
    said = json.loads((folder / "uncertainty.json").read_text())["figures"]
    metrics = arm(folder).read_rounds()[-1].metrics or {}
    assert said["dice"]["arms"]["federated"]["value"] == metrics["dice"]


@pytest.mark.parametrize("algorithm", ["ditto", pytest.param("apfl", marks=pytest.mark.slow)])
def test_personal_models_leave_the_global_one_as_fedavg_has_it(serial: Run, algorithm: str) -> None:
    plain, own = serial("fraction=0.7"), serial(*CHANGES[algorithm])
    assert bits(own)[0] == bits(plain)[0]
    assert bits(own)[2] == bits(plain)[2]
    for one, other in zip(arm(own).read_rounds(), arm(plain).read_rounds(), strict=True):
        assert one.global_metrics == other.metrics
        assert one.metrics != other.metrics
        assert other.global_metrics is None
        for name, site in one.sites.items():
            assert site.global_metrics == other.sites[name].metrics
            assert site.bytes_down == pytest.approx(other.sites[name].bytes_down, abs=100)
    page = write_report(own).read_text()
    assert "Federated, global model" in page
    assert f"a personal model ({algorithm})" in page
    released = read_releases(next(arm(own).folder.glob("sites/*/state")))[0]
    names = {quantity.name for one in released for quantity in one.quantities}
    assert {"update", "global count"} <= names


@pytest.mark.slow
def test_learned_alphas_are_shown_and_leave_no_site(serial: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = serial(*CHANGES["apfl"])
    assert "alpha at the end" in write_report(folder).read_text()
    trained = {
        (name, record.round_number)
        for record in arm(folder).read_rounds()
        for name, site in record.sites.items()
        if is_training(site) and site.status == "ok"
    }
    lines = list(csv.DictReader((folder / "personal.csv").read_text().splitlines()))
    shown = {
        (line["site"], int(line["round"])): float(line["alpha"]) for line in lines if line["alpha"]
    }
    assert set(shown) == trained
    assert len({site for site, _ in trained}) == 3
    write_event_files([facts_of(load_run(folder))])
    events = EventAccumulator(str(folder / EVENTS_FOLDER / "federated")).Reload()
    tracked = {
        (tag.rpartition("/")[2], event.step): event.value
        for tag in events.Tags()["scalars"]
        if tag.startswith("alpha/")
        for event in events.Scalars(tag)
    }
    assert tracked == pytest.approx(shown, rel=1e-6)
    for site, last in {site: number for site, number in sorted(trained)}.items():
        [parts] = (arm(folder).folder / "sites" / site / "state" / "personal").iterdir()
        assert shown[site, last] == float(load_file(max(parts.iterdir()))[ALPHA])
    for state in arm(folder).folder.glob("sites/*/state"):
        names = {quantity.name for one in read_releases(state)[0] for quantity in one.quantities}
        assert names  # and none of them is new
        assert not [name for name in names if "alpha" in name]
    assert "alpha" not in (arm(folder).folder / "rounds.jsonl").read_text()


@pytest.mark.slow
def test_noise_is_charged_as_without_local_normalisations(prepare: Run, serial: Run) -> None:
    plain, own = serial(*PRIVATE), serial(*PRIVATE, "algorithm=fedbn")
    threaded = prepare(*PRIVATE, "algorithm=fedbn")
    run_study(threaded, Options(workers=2))
    assert bits(threaded) == bits(own)
    for site in sorted((arm(plain).folder / "sites").iterdir()):
        one, other = (
            [
                entry.spend.event
                for entry in Ledger(folder / "sites" / site.name / "state").entries()
            ]
            for folder in (arm(plain).folder, arm(own).folder)
        )
        assert one == other
        assert len(one) == 3
    found = audit_run_ledgers(own, delta=1e-3).findings
    assert [(f.check, f.detail) for f in found if f.status is Status.FAIL] == []


def test_qfedavg_counts_by_the_loss_of_the_weights_that_were_sent(serial: Run) -> None:
    # Weights that hardly move: the mean loss of a pass is that of the weights that were sent.
    still = LABELS.replace("local_steps = 2", "local_epochs = 1\nlearning_rate = 1e-6")
    plain, own = serial(text=still), serial("algorithm=qfedavg", text=still)
    first = [arm(folder).read_rounds()[0] for folder in (plain, own)]
    for name, site in first[1].sites.items():
        assert site.loss == pytest.approx(first[0].sites[name].loss, rel=1e-4)
        assert site.loss != first[0].sites[name].loss


def test_qfedavg_without_a_power_is_fedavg(serial: Run) -> None:
    plain, fair = serial(text=LABELS), serial("algorithm=qfedavg", text=LABELS)
    none = serial("algorithm=qfedavg", "fairness_q=0", text=LABELS)
    models = [load_file(arm(f).folder / "model.safetensors") for f in (plain, none, fair)]
    for name, array in models[0].items():
        np.testing.assert_allclose(models[1][name], array, atol=1e-5)
    assert any(not np.allclose(models[2][n], array, atol=1e-4) for n, array in models[0].items())
