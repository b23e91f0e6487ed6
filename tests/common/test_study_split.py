"""`federation.algorithm = "split"`: what it does not go with, and why."""

import tomllib
from typing import Any

import pytest

from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study, parse_study_json, study_to_toml


def study(**sections: Any) -> StudyConfig:
    table: dict[str, Any] = {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5},
        "federation": {"algorithm": "split", "min_sites": 4},
        "privacy": {"unit": "none"},
    }
    return parse_study({**table, **sections}, "study.toml")


def simulated(**simulation: Any) -> dict[str, Any]:
    return {"simulation": {"dataset": "phantom", **simulation}}


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    *(
        ({"privacy": {"unit": unit, **more}}, [f'unit = "{unit}"', "no epsilon", '"fedavg"'])
        for unit, more in (
            ("patient", {}),
            ("record", {}),
            ("site", {"site": {"expected_sites": 5}}),
        )
    ),
    ({"secure_aggregation": {"enabled": True}}, ["has to see them"]),
    ({"compute": {"precision": "bfloat16"}}, ['"bfloat16"', "in float32"]),
    ({"compression": {"update": "int8"}}, ['"int8"', "activations stay as they are"]),
    (
        {"task": {"type": "segmentation", "classes": ["a"]}, "model": {"name": "unet"}},
        ['"unet"', "skip connections", "cnn, vgg16"],
    ),
    (
        {
            "task": {"type": "report", "report": {"vocabulary": "w.txt"}},
            "model": {"name": "report_lstm"},
        },
        ['"report_lstm"', "must not leave"],
    ),
    ({"model": {"name": "tiny_net"}}, ['"tiny_net"', "plug-in"]),
    (
        {"data": {"tabular": {"age": {"mean": 50.0, "std": 10.0}}}},
        ["data.tabular", "as they are", "early"],
    ),
    ({"semi_supervised": {"method": "pseudo_labels"}}, ['"pseudo_labels"', "guess"]),
    (
        simulated(labels={"share": 0.5}, annotation={"patients": 2}),
        ["simulation.annotation", "whole network"],
    ),
    (simulated(failures={"poisoned": {"one": "sign_flip"}}), ["own parts alone", "label_flip"]),
    (
        simulated(failures={"poisoned": {"one": "label_flip"}, "boost": 2.0}),
        ["own parts alone", "without boost"],
    ),
    ({"federation": {"algorithm": "split", "buffer_size": 2}}, ["buffer_size", "to fedbuff"]),
    ({"federation": {"front_stages": 2}}, ["front_stages = 2", "to split"]),
    ({"federation": {"algorithm": "split", "front_stages": 0}}, ["front_stages"]),
]


@pytest.mark.parametrize(
    ("sections", "fragments"), REFUSED, ids=[str(i) for i in range(len(REFUSED))]
)
def test_study_refuses_what_does_not_go_together(
    sections: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(StudyError) as caught:
        study(**sections)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_what_concerns_whole_updates_goes_with_it() -> None:
    this = study(
        aggregation={"rule": "trimmed_mean", "num_byzantine": 1, "max_norm": 3.0},
        federation={"algorithm": "split", "min_sites": 4, "ema_decay": 0.9, "fraction": 0.5},
        **simulated(failures={"poisoned": {"one": "label_flip"}, "drop_out": 0.1}),
    )
    assert this.federation.parameters == {"front_stages": 1}
    assert parse_study(tomllib.loads(study_to_toml(this)), "again") == this
    assert parse_study_json(this.to_json()) == this
    alone = this.federation.without_algorithm()
    assert (alone.algorithm, alone.parameters) == ("fedavg", {})
