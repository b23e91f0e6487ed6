"""`[aggregation]`: what cannot hold is refused before anything runs, with the way out."""

import tomllib
from typing import Any

import pytest

from medfed.cli.keys import print_keys
from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study, parse_study_json, study_to_toml

KRUM = {"rule": "krum", "num_byzantine": 1}
MEDIAN = {"rule": "median", "num_byzantine": 2}


def study(aggregation: dict[str, Any], **sections: dict[str, Any]) -> StudyConfig:
    table = {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5},
        "federation": {"min_sites": 5},
        "aggregation": aggregation,
    }
    return parse_study({**table, **sections}, "study.toml")


@pytest.mark.parametrize(
    ("aggregation", "sections", "fragments"),
    [
        ({"rule": "krum"}, {}, ["aggregation", "num_byzantine = 1"]),
        ({"num_byzantine": 1}, {}, ['rule = "mean"', "holds against none", "trimmed_mean"]),
        ({"rule": "mode", "num_byzantine": 1}, {}, ["aggregation", "none of mean, median"]),
        ({"rule": "median", "num_byzantine": 0}, {}, ["aggregation.num_byzantine"]),
        ({**MEDIAN, "num_selected": 2}, {}, ["num_selected", "only multi_krum"]),
        ({"max_norm": -1.0}, {}, ["aggregation.max_norm"]),
        ({"max_norm": float("inf")}, {}, ["aggregation.max_norm"]),
        (KRUM, {"federation": {"min_sites": 4}}, ["min_sites = 4", "min_sites = 5 or more"]),
        (MEDIAN, {"federation": {"min_sites": 4}}, ["against 2", "min_sites = 5 or more"]),
        (
            {"rule": "multi_krum", "num_byzantine": 1, "num_selected": 5},
            {},
            ["min_sites = 6 or more"],
        ),
        (
            KRUM,
            {"federation": {"min_sites": 5, "weighting": "public"}},
            ['weighting = "public"', '"auto" or "uniform"'],
        ),
        (KRUM, {"secure_aggregation": {"enabled": True}}, ["krum", "only the sum"]),
        ({"max_norm": 2.0}, {"secure_aggregation": {"enabled": True}}, ["max_norm = 2"]),
        (
            MEDIAN,
            {"privacy": {"unit": "site", "site": {"expected_sites": 5}}},
            ["median", "privacy.site.max_update_norm"],
        ),
        (
            {"max_norm": 2.0},
            {"privacy": {"unit": "site", "site": {"expected_sites": 5}}},
            ["max_norm = 2", "privacy.site.max_update_norm"],
        ),
    ],
)
def test_study_refuses_what_cannot_hold(
    aggregation: dict[str, Any], sections: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(StudyError) as caught:
        study(aggregation, **sections)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "aggregation",
    [
        {},
        KRUM,
        MEDIAN,
        {**KRUM, "max_norm": 0.5},
        {"max_norm": 3.0},
        {"rule": "multi_krum", "num_byzantine": 1, "num_selected": 4},
        {"rule": "geometric_median", "num_byzantine": 2},
    ],
)
def test_study_survives_writing(aggregation: dict[str, Any]) -> None:
    this = study(aggregation)
    assert parse_study(tomllib.loads(study_to_toml(this)), "again") == this
    assert parse_study_json(this.to_json()) == this


def test_robust_rules_take_every_site_once_and_the_mean_does_not() -> None:
    for privacy, weighting in (("none", "examples"), ("patient", "public")):
        assert study({}, privacy={"unit": privacy}).weighting == weighting
        assert study({"max_norm": 1.0}, privacy={"unit": privacy}).weighting == weighting
        assert study(KRUM, privacy={"unit": privacy}).weighting == "uniform"
    stated = {"min_sites": 5, "weighting": "uniform"}
    assert study(KRUM, federation=stated).weighting == "uniform"


def test_keys_print_the_section(capsys: pytest.CaptureFixture[str]) -> None:
    print_keys()
    printed = capsys.readouterr().out
    assert "[aggregation]" in printed
    for text in ("multi_krum", "num_byzantine = (unset)", "max_norm = 0.0"):
        assert text in printed
