"""`cyclic` and `fedbuff`: what they do not go with, and why; `[simulation.pace]`."""

import tomllib
from typing import Any

import pytest

from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study, parse_study_json, study_to_toml

SECURE = {"secure_aggregation": {"enabled": True}}
PER_SITE = {"privacy": {"unit": "site", "site": {"expected_sites": 5}}}
MEDIAN = {"aggregation": {"rule": "median", "num_byzantine": 1}}


def study(federation: dict[str, Any], **sections: dict[str, Any]) -> StudyConfig:
    table = {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5},
        "federation": federation,
        "privacy": {"unit": "none"},
    }
    return parse_study({**table, **sections}, "study.toml")


def of(algorithm: str, **more: Any) -> dict[str, Any]:
    return {"algorithm": algorithm, "min_sites": 3, **more}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (of("cyclic"), SECURE, ["cyclic", "no sum to hide it in"]),
    (of("fedbuff"), SECURE, ["fedbuff", "whoever was first"]),
    (of("cyclic"), PER_SITE, ["next site", "no noise", '"patient"']),
    (of("fedbuff"), PER_SITE, ["drawn at random", "speed"]),
    (of("cyclic"), MEDIAN, ['"median"', "no others", "max_norm"]),
    (of("fedbuff"), MEDIAN, ['"median"', "different rounds", "max_norm"]),
    (of("cyclic", weighting="examples"), {}, ['"examples"', '"uniform"']),
    (of("fedbuff", weighting="public"), {}, ['"public"', '"uniform"']),
    (of("fedbuff", buffer_size=4), {}, ["buffer_size = 4", "min_sites = 3", "never be full"]),
    (of("fedbuff", fraction=0.5), {}, ["fraction = 0.5", "nobody is drawn"]),
    (of("fedbuff"), {"model": {"norm": "batch", "name": "resnet18"}}, ["running variance"]),
    (of("cyclic", buffer_size=2), {}, ["buffer_size = 2", "to fedbuff"]),
    (of("fedbuff", server_momentum=0.5), {}, ["server_momentum", "fedavgm"]),
    (
        of("fedavg"),
        {"simulation": {"dataset": "phantom", "pace": {"sigma": 0.1}}},
        ["simulation.pace", '"fedavg"', '"fedbuff"'],
    ),
]


@pytest.mark.parametrize(
    ("federation", "sections", "fragments"), REFUSED, ids=[str(i) for i in range(len(REFUSED))]
)
def test_study_refuses_what_does_not_go_together(
    federation: dict[str, Any], sections: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(StudyError) as caught:
        study(federation, **sections)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("algorithm", ["cyclic", "fedbuff"])
@pytest.mark.parametrize("unit", ["none", "patient", "record"])
def test_sites_that_add_noise_themselves_go_with_any_order(algorithm: str, unit: str) -> None:
    this = study(of(algorithm), privacy={"unit": unit}, aggregation={"max_norm": 1.0})
    assert this.weighting == "uniform"
    assert this.federation.keeps_order


@pytest.mark.parametrize("algorithm", ["cyclic", "fedbuff"])
def test_study_states_every_parameter_and_survives_writing(algorithm: str) -> None:
    this = study(of(algorithm), simulation={"dataset": "phantom"})
    assert parse_study(tomllib.loads(study_to_toml(this)), "again") == this
    assert parse_study_json(this.to_json()) == this
    expected = {"buffer_size": 2, "server_learning_rate": 1.0} if algorithm == "fedbuff" else {}
    assert this.federation.parameters == expected
    alone = this.federation.without_algorithm()
    assert (alone.algorithm, alone.parameters) == ("fedavg", {})
