"""Compressed updates in whole runs: killed and resumed, with noise, beside one another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.ledger import Ledger
from medfed.common.study_file import load_study, parse_study_json
from medfed.server import loop
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.sweep import write_sweep_report
from medfed.simulations.study import Options, run_study
from medfed.simulations.sweep import run_sweep, start_sweep

STUDY = """
[study]
name = "small"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 3
local_steps = 3
batch_size = 8
learning_rate = 0.05
[federation]
min_sites = 2
weighting = "uniform"
[evaluation]
every = 3
[privacy]
unit = "none"
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
[simulation.phantom]
num_patients = 80
max_images_per_patient = 1
[simulation.partition]
method = "dirichlet"
alpha = 0.3
num_sites = 4
"""
NOISE = ("privacy.noise_multiplier=1.0", "privacy.target_delta=1e-3")
BY_PATIENT = (
    *NOISE,
    "privacy.unit=patient",
    "privacy.sample_rate=0.3",
    "privacy.expected_batch_size=4",
)
BY_SITE = (*NOISE, "privacy.unit=site", "privacy.site.expected_sites=4")
SOME = "federation.fraction=0.7"
TOP_K, INT8, FP16 = (f"compression.update={update}" for update in ("top_k", "int8", "fp16"))
BY_CHANCE = "compression.error_feedback=false"
BEFORE, AFTER = "before the checkpoint", "after the checkpoint"
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def prepare(prepared_run: Run) -> Run:
    """Makes a prepared run of the study above."""

    def make(*overrides: str) -> Path:
        return prepared_run(STUDY, overrides)

    return make


def arm(folder: Path) -> ArmFolder:
    return ArmFolder(folder / "arms" / "federated")


def bits(folder: Path) -> tuple[list[str], bytes, list[Any]]:
    """The weights after each round, the model, and the figures."""
    records = arm(folder).read_rounds()
    return (
        [record.weights_sha256 for record in records],
        (arm(folder).folder / "model.safetensors").read_bytes(),
        [record.metrics for record in records],
    )


@pytest.mark.parametrize(
    ("changes", "moment"),
    [
        ((TOP_K, SOME), AFTER),
        *(
            pytest.param(changes, moment, marks=pytest.mark.slow)
            for changes, moment in (
                ((TOP_K, SOME), BEFORE),
                ((INT8, SOME), BEFORE),
                ((INT8, SOME), AFTER),
                ((INT8, BY_CHANCE), AFTER),
                ((TOP_K, *BY_PATIENT), AFTER),
                ((INT8, *BY_SITE), AFTER),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_threads_killed_and_resumed_end_in_the_bits_of_one_serial_run(
    prepare: Run, serial: Run, monkeypatch: pytest.MonkeyPatch, changes: Any, moment: str
) -> None:
    # Sites train in round 2 and are asked for it again; some were last asked in round 1.
    folder = prepare(*changes)
    save = loop.save_checkpoint

    def die_in_round_2(*arguments: Any) -> None:
        if arguments[1].record.round_number == 2:
            if moment == AFTER:
                save(*arguments)
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", die_in_round_2)
    with pytest.raises(KeyboardInterrupt):
        run_study(folder, Options(workers=2))
    monkeypatch.setattr(loop, "save_checkpoint", save)
    run_study(folder, Options(workers=2))
    assert bits(folder) == bits(serial(*changes))


def test_what_is_owed_counts_from_the_second_round_on(serial: Run) -> None:
    with_feedback, without = bits(serial(TOP_K))[0], bits(serial(TOP_K, BY_CHANCE))[0]
    assert with_feedback[0] == without[0]
    assert with_feedback[1] != without[1]
    assert with_feedback != bits(serial())[0]


def test_updates_are_small_and_the_model_that_the_server_sends_is_not(serial: Run) -> None:
    def sizes(*changes: str) -> tuple[float, float]:
        [first, *_] = arm(serial(*changes)).read_rounds()
        sites = first.sites.values()
        return sum(s.update_bytes for s in sites), sum(s.bytes_down for s in sites)

    whole, down = sizes()
    for changes, most in (((FP16,), 0.52), ((INT8,), 0.27), ((TOP_K,), 0.035)):
        up, same_down = sizes(*changes)
        assert up < most * whole
        assert abs(same_down - down) < 500  # names in the study


@pytest.mark.slow
@pytest.mark.parametrize("update", [FP16, INT8, TOP_K])
@pytest.mark.parametrize("unit", ["patient", "site"])
def test_noise_is_charged_as_without_compression(serial: Run, update: str, unit: str) -> None:
    private = BY_PATIENT if unit == "patient" else BY_SITE
    plain, own = arm(serial(*private)), arm(serial(*private, update))
    assert bits(serial(*private))[0] != bits(serial(*private, update))[0]
    for site in sorted((plain.folder / "sites").iterdir()):
        one, other = (
            [entry.spend for entry in Ledger(run.folder / "sites" / site.name / "state").entries()]
            for run in (plain, own)
        )
        assert [spend.event for spend in one] == [spend.event for spend in other]
        assert len(one) == 3
    for before, after in zip(plain.read_rounds(), own.read_rounds(), strict=True):
        assert before.site_epsilon == after.site_epsilon
        assert {name: site.epsilon for name, site in before.sites.items()} == {
            name: site.epsilon for name, site in after.sites.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sign_flip", "scale", "noise"])
def test_a_poisoned_site_poisons_its_update_and_sends_it_as_the_others_do(
    serial: Run, kind: str
) -> None:
    poison = (f'simulation.failures.poisoned={{"site-1" = "{kind}"}}',)
    robust = ("aggregation.rule=median", "aggregation.num_byzantine=1", "federation.min_sites=3")
    poisoned, healthy = (arm(serial(INT8, *robust, *extra)).read_rounds() for extra in (poison, ()))
    assert all(site.status == "ok" for record in poisoned for site in record.sites.values())
    assert poisoned[0].weights_sha256 != healthy[0].weights_sha256
    sizes = {site.update_bytes for site in poisoned[0].sites.values()}
    assert max(sizes) - min(sizes) < 10


def test_arms_that_train_alone_send_nothing_small(prepare: Run) -> None:
    folder = prepare(TOP_K, 'simulation.arms=["federated", "pooled", "local"]')
    updates = {
        path.parent.name: parse_study_json(path.read_text()).compression.update
        for path in folder.glob("arms/*/study.json")
    }
    assert updates.pop("federated") == "top_k"
    assert set(updates.values()) == {"none"}
    assert len(updates) == 5


@pytest.mark.slow
def test_a_sweep_shows_the_figure_against_the_bytes_of_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "study.toml"
    vary = '[sweep.vary]\n"compression.update" = ["none", "int8"]\n'
    path.write_text(STUDY + vary)
    start_sweep(load_study(path), tmp_path / "sweep", None, Options())
    assert run_sweep(tmp_path / "sweep", Options(), lambda run, study: nullcontext()) == {}
    page = write_sweep_report(tmp_path / "sweep").read_text()
    assert 'id="figure-bytes"' in page
    for suffix in ("svg", "png"):
        assert (tmp_path / "sweep" / "figures" / f"bytes.{suffix}").stat().st_size > 5_000
    header, none, int8 = (
        line.split(",") for line in (tmp_path / "sweep/runs.csv").read_text().splitlines()
    )
    sizes = [int(row[header.index("update_bytes")]) for row in (none, int8)]
    assert sizes[1] < 0.27 * sizes[0]
