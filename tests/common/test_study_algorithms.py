"""`federation.algorithm`: its own parameters, written out; what cannot go together."""

import tomllib
from typing import Any

import pytest

from medfed.cli.keys import print_keys
from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study, parse_study_json, study_to_toml

ALGORITHMS = [
    "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fednova", "scaffold",
    "fedbn", "ditto", "apfl", "qfedavg",
]  # fmt: skip


RESNET = {"name": "resnet18"}
WITHOUT_NUMBERS = ("fedavg", "fednova", "scaffold", "fedbn")


def study(federation: dict[str, Any], **sections: dict[str, Any]) -> StudyConfig:
    table = {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5, "momentum": 0.0},
        "federation": federation,
        "privacy": {"unit": "none"},
        "model": RESNET,
    }
    return parse_study({**table, **sections}, "study.toml")


SECURE = {"secure_aggregation": {"enabled": True}}
PER_PATIENT = {"privacy": {"unit": "patient"}}
PER_SITE = {"privacy": {"unit": "site", "site": {"expected_sites": 5}}}
EPOCHS = {"training": {"local_epochs": 1, "momentum": 0.0}}
ADAM = {"training": {"local_steps": 5, "optimizer": "adam", "momentum": 0.0}}


@pytest.mark.parametrize(
    ("federation", "sections", "fragments"),
    [
        ({"algorithm": "fedsgd"}, {}, ["federation.algorithm", "'fedavg'"]),
        ({"server_momentum": 0.5}, {}, ["server_momentum = 0.5", '"fedavg"', "fedavgm or fedadam"]),
        (
            {"algorithm": "fedprox", "server_tau": 0.1},
            {},
            ["server_tau = 0.1", '"fedprox"', "fedadam or fedyogi or fedadagrad"],
        ),
        ({"algorithm": "fedadam", "proximal_mu": 0.1}, {}, ["proximal_mu", "to fedprox"]),
        ({"algorithm": "fedadagrad", "server_beta2": 0.9}, {}, ["server_beta2", "fedyogi"]),
        ({"algorithm": "fedavgm", "server_momentum": 1.0}, {}, ["federation.server_momentum"]),
        ({"algorithm": "fedadam", "server_tau": 0.0}, {}, ["federation.server_tau"]),
        ({"algorithm": "fedprox", "proximal_mu": -1.0}, {}, ["federation.proximal_mu"]),
        ({"algorithm": "fednova"}, ADAM, ["fednova", 'optimizer = "adam"', '"sgd"']),
        ({"algorithm": "fednova"}, {**EPOCHS, **SECURE}, ["local_steps", "number of images"]),
        ({"algorithm": "fednova"}, {**EPOCHS, **PER_SITE}, ["local_steps", 'unit = "site"']),
        (
            {"algorithm": "fednova", "min_sites": 5},
            {"aggregation": {"rule": "median", "num_byzantine": 1}},
            ["fednova", "(median)", "steps that it states"],
        ),
        (
            {"algorithm": "scaffold"},
            {"aggregation": {"max_norm": 1.0}},
            ["scaffold", "(max_norm)", "one that lies"],
        ),
        ({"algorithm": "scaffold"}, ADAM, ["scaffold", '"sgd"']),
        (
            {"algorithm": "scaffold"},
            {"training": {"local_steps": 5}},
            ["momentum = 0.9", "Set training.momentum = 0"],
        ),
        ({"algorithm": "scaffold"}, SECURE, ["scaffold", "only the sum"]),
        ({"algorithm": "scaffold"}, PER_SITE, ["scaffold", "no noise", '"patient"']),
        ({"algorithm": "scaffold", "weighting": "examples"}, {}, ['"examples"', '"uniform"']),
        ({"algorithm": "fedbn"}, {"model": {"name": "cnn"}}, ["the cnn, which has no norm"]),
        ({"algorithm": "fedbn"}, PER_SITE, ["fedbn", 'unit = "site"', '"patient"']),
        *(
            ({"algorithm": algorithm, "ema_decay": 0.9}, {}, [algorithm, "ema_decay = 0.9"])
            for algorithm in ("fedbn", "ditto", "apfl")
        ),
        *(
            ({"algorithm": algorithm}, privacy, [algorithm, unit, "no epsilon would", '"fedbn"'])
            for algorithm in ("ditto", "apfl")
            for unit, privacy in (("patient", PER_PATIENT), ("site", PER_SITE))
        ),
        ({"algorithm": "ditto", "ditto_lambda": -1.0}, {}, ["federation.ditto_lambda"]),
        ({"algorithm": "ditto", "apfl_alpha": 0.5}, {}, ["apfl_alpha = 0.5", "to apfl"]),
        ({"algorithm": "apfl", "apfl_alpha": 1.0}, {}, ["federation.apfl_alpha"]),
        ({"algorithm": "apfl", "apfl_alpha_rate": -0.1}, {}, ["federation.apfl_alpha_rate"]),
        (
            {"algorithm": "apfl", "apfl_alpha_rate": 0.1},
            PER_PATIENT,
            ["apfl", "its steps have no noise", "no epsilon would"],
        ),
        ({"algorithm": "qfedavg", "fairness_q": -1.0}, {}, ["federation.fairness_q"]),
        ({"algorithm": "qfedavg"}, ADAM, ["qfedavg", '"sgd"']),
        ({"algorithm": "qfedavg"}, SECURE, ["qfedavg", "only the sum"]),
        ({"algorithm": "qfedavg"}, PER_PATIENT, ["qfedavg", "exact loss"]),
        ({"algorithm": "qfedavg"}, PER_SITE, ["qfedavg", "exact loss"]),
        (
            {"algorithm": "qfedavg"},
            {"aggregation": {"max_norm": 1.0}},
            ["qfedavg", "(max_norm)", "loss that its site states"],
        ),
    ],
)
def test_study_refuses_what_does_not_go_together(
    federation: dict[str, Any], sections: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(StudyError) as caught:
        study(federation, **sections)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_study_states_every_parameter_and_survives_writing(algorithm: str) -> None:
    this = study({"algorithm": algorithm})
    assert parse_study(tomllib.loads(study_to_toml(this)), "again") == this
    assert parse_study_json(this.to_json()) == this
    for name, value in this.federation.parameters.items():
        assert f"{name} = {value}" in study_to_toml(this)
    assert bool(this.federation.parameters) == (algorithm not in WITHOUT_NUMBERS)


def test_stated_parameters_stand_beside_the_defaults_of_the_others() -> None:
    this = study({"algorithm": "fedyogi", "server_tau": 0.1}).federation
    assert this.parameters == {
        "server_beta2": 0.99,
        "server_learning_rate": 0.01,
        "server_momentum": 0.9,
        "server_tau": 0.1,
    }
    assert study({"algorithm": "fedadagrad"}).federation.server_momentum == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_site_alone_trains_by_no_algorithm(algorithm: str) -> None:
    alone = study({"algorithm": algorithm, "fraction": 0.5}).federation.without_algorithm()
    assert (alone.algorithm, alone.parameters, alone.fraction) == ("fedavg", {}, 0.5)


@pytest.mark.parametrize("algorithm", ["fednova", "scaffold"])
@pytest.mark.parametrize("unit", ["none", "patient", "record"])
def test_algorithms_go_with_noise_of_the_sites(algorithm: str, unit: str) -> None:
    assert study({"algorithm": algorithm}, privacy={"unit": unit}).privacy.unit == unit


def test_equal_steps_of_all_sites_go_with_everything_in_fednova() -> None:
    for sections in (SECURE, PER_SITE):
        assert study({"algorithm": "fednova"}, **sections).federation.algorithm == "fednova"


@pytest.mark.parametrize("algorithm", ["fedbn", "ditto", "apfl"])
def test_what_sites_keep_goes_with_any_rule_and_with_masks(algorithm: str) -> None:
    robust = {"rule": "median", "num_byzantine": 1}
    for sections in (SECURE, {"aggregation": {"max_norm": 1.0}}, {"aggregation": robust}):
        this = study({"algorithm": algorithm, "min_sites": 5}, **sections)
        assert this.federation.keeps_at_sites
    assert this.federation.has_personal_models == (algorithm != "fedbn")


def test_normalisations_of_the_sites_are_trained_with_their_noise() -> None:
    for unit in ("patient", "record"):
        assert study({"algorithm": "fedbn"}, privacy={"unit": unit}).privacy.at_sites


def test_scaffold_counts_every_site_once() -> None:
    assert study({"algorithm": "scaffold"}).weighting == "uniform"
    assert study({"algorithm": "fednova"}).weighting == "examples"


@pytest.mark.parametrize(("examples", "steps"), [(1, 2), (32, 2), (33, 4), (100, 8)])
def test_steps_are_passes_in_batches(examples: int, steps: int) -> None:
    training = study({}, training={"local_epochs": 2}).training
    assert training.steps_for(examples) == steps
    with pytest.raises(ValueError, match="number of images"):
        training.steps_for(None)


def test_keys_print_the_algorithms(capsys: pytest.CaptureFixture[str]) -> None:
    print_keys()
    printed = capsys.readouterr().out
    numbers = ("proximal_mu", "server_tau", "ditto_lambda", "apfl_alpha_rate", "fairness_q")
    for text in (*ALGORITHMS, *(f"{name} = (unset)" for name in numbers)):
        assert text in printed
