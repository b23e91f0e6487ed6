"""Algorithms in whole runs on sites of unlike labels: any grid, killed and resumed, with noise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.ledger import Ledger
from medfed.common.study_file import load_study
from medfed.server import loop
from medfed.server.checkpoint import load_checkpoint
from medfed.server.records import ArmFolder
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_run_ledgers
from medfed.simulations.reporting.report import write_report
from medfed.simulations.study import Options, run_study

STUDY = """
[study]
name = "skewed"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 3
local_epochs = 2
batch_size = 8
learning_rate = 0.05
momentum = 0.0
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
PRIVATE = (
    "privacy.unit=patient",
    "privacy.noise_multiplier=1.0",
    "privacy.sample_rate=0.3",
    "privacy.expected_batch_size=4",
    "privacy.target_delta=1e-3",
)
BEFORE, AFTER = "before the checkpoint", "after the checkpoint"
Run = Callable[..., Path]


def overridden(*overrides: str) -> list[str]:
    return [f"federation.{o}" if "." not in o.partition("=")[0] else o for o in overrides]


@pytest.fixture(scope="module")
def prepare(prepared_run: Run) -> Run:
    """Makes a prepared run of the study above; an override without a section is federation's."""

    def make(*overrides: str, text: str = STUDY) -> Path:
        return prepared_run(text, overridden(*overrides))

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


def fixed_steps(text: str = STUDY) -> str:
    return text.replace("local_epochs = 2", "local_steps = 3")


ALL = ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fednova", "scaffold"]


@pytest.mark.parametrize(
    ("algorithm", "moment"),
    [
        ("fedadam", BEFORE),
        ("scaffold", BEFORE),
        ("scaffold", AFTER),
        *(
            pytest.param(algorithm, moment, marks=pytest.mark.slow)
            for algorithm in ("fedavgm", "fedadam", "fedprox", "fednova")
            for moment in (BEFORE, AFTER)
            if (algorithm, moment) != ("fedadam", BEFORE)
        ),
    ],
)
def test_threads_killed_and_resumed_end_in_the_bits_of_one_serial_run(
    prepare: Run, serial: Run, monkeypatch: pytest.MonkeyPatch, algorithm: str, moment: str
) -> None:
    # Not all sites take part in a round: some variates are a round older than others.
    changes = (f"algorithm={algorithm}", "fraction=0.7")
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


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALL)
def test_algorithms_differ_from_fedavg_and_from_one_another(serial: Run, algorithm: str) -> None:
    changes = () if algorithm in ("fedavgm", "fedyogi", "fedadagrad") else ("fraction=0.7",)
    others = [serial(*changes), serial("algorithm=fedyogi")]
    own = serial(f"algorithm={algorithm}", *changes)
    for other in others:
        assert other == own or bits(other)[0] != bits(own)[0]
    assert arm(own).read_rounds()[-1].metrics is not None


def test_checkpoint_holds_what_the_algorithm_goes_on_from(serial: Run) -> None:
    def states(*changes: str) -> dict[str, list[str]]:
        folder = serial(*changes)
        digest = load_study(folder / "study.toml").digest()
        checkpoint = load_checkpoint(arm(folder).checkpoint, digest)
        assert checkpoint is not None
        return {
            name: sorted({str(array.dtype) for array in state.values()})
            for name, state in checkpoint.states.items()
        }

    assert states("fraction=0.7") == {}
    assert states("algorithm=fedavgm", "fraction=0.7") == {"first": ["float64"]}
    both = {"first": ["float64"], "second": ["float64"]}
    assert states("algorithm=fedadam", "fraction=0.7") == both
    found = states("algorithm=scaffold", "fraction=0.7")
    trained = {
        name
        for record in arm(serial("algorithm=scaffold", "fraction=0.7")).read_rounds()
        for name, site in record.sites.items()
        if site.weight
    }
    assert set(found) == {"sum", *(f"site {name}" for name in trained)}
    assert found["sum"] == ["float64"]
    # No file of an earlier round but those that the checkpoint names.
    folder = arm(serial("algorithm=scaffold", "fraction=0.7")).checkpoint
    named = json.loads((folder / "state.json").read_text())
    files = {saved["file"] for saved in named["states"].values()} | {named["weights"]}
    assert {path.name for path in folder.glob("*.safetensors")} == files


@pytest.mark.parametrize(
    "changes",
    [
        ("algorithm=fedprox", "proximal_mu=0"),
        ("algorithm=fedavgm", "server_momentum=0"),
        ("algorithm=fednova",),
    ],
    ids=["mu = 0", "no momentum", "equal steps"],
)
def test_what_equals_fedavg_has_its_bits(serial: Run, changes: tuple[str, ...]) -> None:
    assert bits(serial(*changes, text=fixed_steps())) == bits(serial(text=fixed_steps()))


@pytest.mark.slow
def test_terms_change_nothing_before_there_is_anything_to_hold_to(serial: Run) -> None:
    one_step = STUDY.replace("local_epochs = 2", "local_steps = 1")
    held = serial("algorithm=fedprox", "proximal_mu=5", text=one_step)
    assert bits(held) == bits(serial(text=one_step))
    plain, corrected = serial(text=fixed_steps()), serial("algorithm=scaffold", text=fixed_steps())
    assert bits(plain)[0][0] == bits(corrected)[0][0]
    assert bits(plain)[0][1] != bits(corrected)[0][1]


@pytest.mark.parametrize(
    "algorithm",
    [
        "scaffold",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ("fedadam", "fedprox", "fednova")),
    ],
)
def test_noise_is_charged_as_without_the_algorithm(
    prepare: Run, serial: Run, algorithm: str
) -> None:
    text = fixed_steps()
    plain = serial(*PRIVATE, text=text)
    own = serial(*PRIVATE, f"algorithm={algorithm}", text=text)
    threaded = prepare(*PRIVATE, f"algorithm={algorithm}", text=text)
    run_study(threaded, Options(workers=2))
    assert bits(threaded) == bits(own)
    assert (bits(own)[0] == bits(plain)[0]) == (algorithm == "fednova")
    for site in sorted((arm(plain).folder / "sites").iterdir()):
        one, other = (
            [entry.spend for entry in Ledger(folder / "sites" / site.name / "state").entries()]
            for folder in (arm(plain).folder, arm(own).folder)
        )
        assert [spend.event for spend in one] == [spend.event for spend in other]
        assert len(one) == 3
        epsilons = {r.sites[site.name].epsilon for r in arm(own).read_rounds()}
        assert epsilons == {r.sites[site.name].epsilon for r in arm(plain).read_rounds()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ("secure_aggregation.enabled=true",),
        ("aggregation.rule=median", "aggregation.num_byzantine=1", "min_sites=3"),
        (
            "privacy.unit=site",
            "privacy.noise_multiplier=0.5",
            "privacy.target_delta=1e-3",
            "privacy.site.expected_sites=4",
        ),
    ],
    ids=["masked", "median", "noised by the server"],
)
def test_the_server_optimiser_comes_after_any_rule(serial: Run, how: tuple[str, ...]) -> None:
    same = serial(*how, "algorithm=fedavgm", "server_momentum=0")
    assert bits(same) == bits(serial(*how))
    assert bits(serial(*how, "algorithm=fedadam"))[0] != bits(same)[0]


@pytest.mark.slow
def test_scaffold_sends_a_model_more_and_gets_none(serial: Run) -> None:
    plain, own = (
        arm(serial(*changes, text=fixed_steps())).read_rounds()[0].sites
        for changes in ((), ("algorithm=scaffold",))
    )
    for name, site in own.items():
        if site.weight:
            assert site.bytes_up == plain[name].bytes_up
            assert site.bytes_down > 1.9 * plain[name].bytes_down


def test_a_run_states_its_algorithm_and_its_numbers(serial: Run) -> None:
    folder = serial("algorithm=fedadam", "fraction=0.7")
    federation = load_study(folder / "study.toml").federation
    assert federation.parameters["server_tau"] == 0.001
    assert "server_tau = 0.001" in (folder / "study.toml").read_text()
    page = write_report(folder).read_text()
    for text in ("fedadam, 4 sites", "server_tau = 0.001", "server_beta2 = 0.99"):
        assert text in page


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedadam", "scaffold"])
def test_an_auditor_finds_each_round_s_weights_and_what_was_sent_with_them(
    serial: Run, tmp_path: Path, algorithm: str
) -> None:
    folder = serial(*PRIVATE, f"algorithm={algorithm}", text=fixed_steps())

    def failed(run: Path) -> list[tuple[str, str]]:
        found = audit_run_ledgers(run, delta=1e-3).findings
        return [(f.check, f.detail) for f in found if f.status is Status.FAIL]

    assert failed(folder) == []
    if algorithm == "scaffold":
        run = shutil.copytree(folder, tmp_path / "run")
        records = arm(run).read_rounds()
        records[1].sites[min(records[1].sites)].correction_sha256 = "0" * 64
        arm(run).rewrite_rounds(records)
        [(check, why)] = failed(run)
        assert check == "each round's weights"
        assert "round 2" in why
