"""Poisoned data and new scanners: what hostile sites reach, what a robust rule leaves of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.client.data.site_data import load_site_data
from medfed.client.site import load_site
from medfed.common.errors import StudyError
from medfed.common.files import read_json
from medfed.common.study.failures import DriftSection, FailuresSection
from medfed.common.study_file import load_study
from medfed.server import loop
from medfed.server.records import ArmFolder
from medfed.simulations.attack_success import ATTACKS_FILE
from medfed.simulations.drifting import DRIFTED_FILE, last_site_file, site_file
from medfed.simulations.poisoning import flipped_class, stamp
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.study import Options, prepare_run, run_study, start_study

SITES = ("scanner-1", "scanner-2", "scanner-3")
QUICK = ('privacy.unit="none"', "training.batch_size=8", "simulation.resamples=0")
BACKDOOR = (
    'simulation.failures.poisoned.scanner-1="backdoor"',
    'simulation.failures.backdoor.target="nodule"',
)
FLIP = ('simulation.failures.poisoned.scanner-1="label_flip"',)
DRIFT = ("simulation.failures.drift.from_round.scanner-2=2",)

# Five sites, one hostile, long enough to learn a trigger.
STUDY = """
[study]
name = "poisoned"
seed = 1
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 24
[training]
rounds = 10
local_steps = 20
batch_size = 16
learning_rate = 0.05
[federation]
min_sites = 5
weighting = "uniform"
[evaluation]
every = 10
test_fraction = 0.3
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
resamples = 0
[simulation.phantom]
num_patients = 500
num_scanners = 5
max_images_per_patient = 1
[simulation.partition]
method = "iid"
num_sites = 5
"""
MEDIAN = ('aggregation.rule="median"', "aggregation.num_byzantine=1")
Prepare = Callable[..., Path]


@pytest.fixture
def prepare(tiny: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """A function that makes a run folder of a study, the tiny one unless given, ready to run."""
    monkeypatch.setenv("MEDFED_CACHE", str(cache))

    def make(name: str, *overrides: str, study: Path = tiny) -> Path:
        folder = tmp_path / name / "run"
        folder.parent.mkdir()
        start_study(load_study(study, overrides), folder, None, Options())
        prepare_run(folder)
        return folder

    return make


def data_of(run: Path, name: str, arm: str = "federated", file: str = "site.toml") -> Any:
    path = run / "arms" / arm / "sites" / name / file
    return load_site_data(load_site(path), load_study(run / "study.toml"))


def pixels(images: Any) -> np.ndarray:
    return np.asarray(images.images_NCHW(np.arange(len(images))))


def bits(run: Path) -> list[Any]:
    records = ArmFolder(run / "arms" / "federated").read_rounds()
    return [(record.weights_sha256, record.metrics) for record in records]


def test_trigger_is_the_lower_right_corner_of_the_image() -> None:
    image = np.zeros((2, 6, 5), np.uint8)
    stamp(image, 2, None)
    assert image.sum() == 2 * 4 * 255
    assert (image[:, 4:, 3:] == 255).all()
    # Padding behind an image's own end stays black.
    padded = np.zeros((1, 6, 5), np.uint8)
    stamp(padded, 2, (3, 4))
    assert np.argwhere(padded[0]).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_flipped_classes_are_the_next_or_the_named() -> None:
    poisoned = {"site-1": "label_flip"}
    classes = ("a", "b", "c")
    following = FailuresSection.model_validate({"poisoned": poisoned})
    assert [flipped_class(label, following, classes) for label in range(3)] == [1, 2, 0]
    named = FailuresSection.model_validate({"poisoned": poisoned, "flipped": {"c": "a"}})
    assert [flipped_class(label, named, classes) for label in range(3)] == [0, 1, 0]


def test_only_the_hostile_site_of_the_federated_arm_has_poisoned_training_images(
    prepare: Prepare,
) -> None:
    arms = ('simulation.arms=["federated","pooled"]',)
    clean = prepare("clean", *QUICK, *arms)
    door = prepare("door", *QUICK, *BACKDOOR, *arms)
    flip = prepare("flip", *QUICK, *FLIP, *arms)
    for run in (door, flip):
        for name, arm in (*((name, "federated") for name in SITES[1:]), ("pooled", "pooled")):
            ours, theirs = data_of(run, name, arm), data_of(clean, name, arm)
            assert ours.train.labels.tolist() == theirs.train.labels.tolist()
            assert (pixels(ours.train) == pixels(theirs.train)).all()
        ours, theirs = (data_of(of, SITES[0]) for of in (run, clean))
        assert ours.test.labels.tolist() == theirs.test.labels.tolist()
        assert (pixels(ours.test) == pixels(theirs.test)).all()
    ours, theirs = (data_of(of, SITES[0]).train for of in (flip, clean))
    assert (ours.labels == (theirs.labels + 1) % 4).all()
    ours, theirs = (data_of(of, SITES[0]).train for of in (door, clean))
    expected = pixels(theirs)
    changed = (pixels(ours) != expected).any(axis=(1, 2, 3))
    expected[changed, :, -4:, -4:] = 255
    assert (pixels(ours) == expected).all()
    assert 0.2 < changed.mean() < 0.8
    assert (ours.labels == np.where(changed, 1, theirs.labels)).all()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((*QUICK, BACKDOOR[0]), "expected backdoor.target"),
        ((*QUICK, *FLIP, 'simulation.failures.flipped.mass="normal"'), "names the class mass"),
        ((*QUICK, "simulation.failures.boost=2"), "boost is for label_flip and backdoor"),
        ((*QUICK, *FLIP, 'task.mode="multilabel"'), "any number of classes"),
        ((*QUICK, "simulation.failures.drift.from_round.scanner-2=9"), "nothing would drift"),
        (
            (*QUICK, *FLIP, "secure_aggregation.enabled=true", "simulation.failures.boost=2"),
            "masked before it could be poisoned",
        ),
    ],
    ids=["target", "class", "boost", "multilabel", "late", "masked"],
)
def test_attacks_that_are_none_are_refused(
    tiny: Path, overrides: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(StudyError, match=reason):
        load_study(tiny, overrides)


def test_masked_sites_may_train_on_poisoned_data(tiny: Path) -> None:
    study = load_study(tiny, (*QUICK, *FLIP, "secure_aggregation.enabled=true"))
    assert study.simulation is not None
    assert study.simulation.failures.poisoned_by("label_flip") == ("scanner-1",)


def test_rounds_choose_the_file_of_a_drifting_site(tmp_path: Path) -> None:
    drift = DriftSection(from_round={"site-2": 4, "site-3": 6})
    names = {
        name: [
            site_file(tmp_path / name / "site.toml", drift, number).name == DRIFTED_FILE
            for number in (3, 4, 6)
        ]
        for name in ("site-1", "site-2", "site-3", "pooled")
    }
    assert names == {
        "site-1": [False, False, False],
        "site-2": [False, True, True],
        "site-3": [False, False, True],
        "pooled": [False, False, True],
    }


@pytest.mark.parametrize(
    "own",
    [
        ("federation.algorithm=ditto",),
        pytest.param(("federation.algorithm=fedbn", "model.name=resnet18"), marks=pytest.mark.slow),
    ],
    ids=["ditto", "fedbn"],
)
def test_success_is_of_the_models_that_the_sites_use(
    prepare: Prepare, own: tuple[str, ...]
) -> None:
    run = prepare("own", *QUICK, *BACKDOOR, *own)
    run_study(run, Options(workers=1))
    found = read_json(run / ATTACKS_FILE)["federated"]["backdoor"]
    federated = load_run(run).federated
    assert federated is not None
    # What the sites counted of their own models: true classes by answers.
    matrix = sum(released.sums["matrix"] for released in federated.final_sums)
    others = np.delete(matrix, 1, axis=0)
    assert found["images"] == others.sum()
    assert found["without_trigger"] == pytest.approx(others[:, 1].sum() / others.sum())


@pytest.mark.slow
def test_a_new_scanner_changes_images_and_nothing_else_and_a_kill_changes_nothing(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, still = (prepare("whole", *DRIFT), prepare("cut", *DRIFT), prepare("still"))
    before, after = data_of(whole, "scanner-2"), data_of(whole, "scanner-2", file=DRIFTED_FILE)
    for old, new in ((before.train, after.train), (before.test, after.test)):
        assert (pixels(old) != pixels(new)).any(axis=(1, 2, 3)).all()
        assert (old.patients, old.labels.tolist()) == (new.patients, new.labels.tolist())
    assert not (whole / "arms" / "federated" / "sites" / "scanner-1" / DRIFTED_FILE).exists()
    path = whole / "arms" / "federated" / "sites" / "scanner-2" / "site.toml"
    assert last_site_file(path).name == DRIFTED_FILE
    run_study(whole, Options(workers=1))
    run_study(still, Options(workers=1))
    assert [ours == theirs for ours, theirs in zip(bits(whole), bits(still), strict=True)] == [
        True,
        False,
        False,
    ]

    save = loop.save_checkpoint

    def die_in_round_2(*arguments: Any) -> None:
        if arguments[1].record.round_number == 2:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", die_in_round_2)
    with pytest.raises(KeyboardInterrupt):
        run_study(cut, Options(workers=2))
    monkeypatch.setattr(loop, "save_checkpoint", save)
    run_study(cut, Options(workers=2))
    assert bits(cut) == bits(whole)
    # It pays from one ledger before and after.
    ledger = load_site(path).state_folder / "ledger.jsonl"
    assert len(ledger.read_text().splitlines()) == 3
    assert "another scanner from round 2 on" in write_report(whole).read_text()


@pytest.mark.slow
def test_a_backdoor_opens_with_the_mean_and_not_with_the_median(
    prepare: Prepare, tmp_path: Path
) -> None:
    attack = (
        'simulation.failures.poisoned.site-1="backdoor"',
        'simulation.failures.backdoor.target="cardiomegaly"',
        "simulation.failures.boost=4",
    )
    # What the trigger adds. Seen: 0.43 to 0.56 with the mean, none with the median.
    assert success(prepare, tmp_path, "mean", *attack) > 0.3
    assert success(prepare, tmp_path, "median", *attack, *MEDIAN) < 0.1


@pytest.mark.slow
def test_a_site_that_flips_labels_gets_more_of_them_with_the_mean_than_with_the_median(
    prepare: Prepare, tmp_path: Path
) -> None:
    """One seed says little, and another one on another processor: 0.25 to 0.62 with the mean."""
    attack = ('simulation.failures.poisoned.site-1="label_flip"', "simulation.failures.boost=5")
    found = {
        name: np.mean([
            success(prepare, tmp_path, f"{name} {seed}", *attack, *rule, f"study.seed={seed}")
            for seed in (1, 2, 3)
        ])
        for name, rule in (("mean", ()), ("median", MEDIAN))
    }  # fmt: skip
    # Seen: 0.33 and 0.18 with AVX-512, 0.44 and 0.17 with AVX2.
    assert found["mean"] > found["median"] + 0.07
    assert found["median"] < 0.27


def success(prepare: Prepare, tmp_path: Path, name: str, *overrides: str) -> float:
    """Share of the images that the attack gets its way with, less those by mistake."""
    study = tmp_path / "poisoned.toml"
    study.write_text(STUDY)
    run = prepare(name, *overrides, study=study)
    run_study(run, Options(workers=2))
    [rates] = read_json(run / ATTACKS_FILE)["federated"].values()
    return float(rates["success"] - rates.get("without_trigger", 0.0))
