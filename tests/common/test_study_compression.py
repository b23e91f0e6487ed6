"""`[compression]`: defaults, and what cannot go together."""

from typing import Any

import pytest

from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study


def study(compression: dict[str, Any], **sections: dict[str, Any]) -> StudyConfig:
    table = {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5, "momentum": 0.0},
        "compression": compression,
        "privacy": {"unit": "none"},
    }
    return parse_study({**table, **sections}, "study.toml")


SECURE = {"secure_aggregation": {"enabled": True}}
SCAFFOLD = {"federation": {"algorithm": "scaffold"}}
MEDIAN = {"aggregation": {"rule": "median", "num_byzantine": 1}, "federation": {"min_sites": 3}}


@pytest.mark.parametrize(
    ("compression", "sections", "fragments"),
    [
        ({"update": "topk"}, {}, ["compression.update", "'top_k'"]),
        ({"update": "top_k", "top_k_fraction": 0.0}, {}, ["top_k_fraction"]),
        ({"update": "top_k", "top_k_fraction": 1.1}, {}, ["top_k_fraction"]),
        ({"update": "int8"}, SECURE, ["secure_aggregation", "whole numbers", '"none"']),
        ({"update": "fp16"}, SCAFFOLD, ['"scaffold"', "mean gradient", '"none"']),
        ({"update": "top_k"}, MEDIAN, ['"median"', "most updates are zero", '"int8"']),
    ],
    ids=["name", "no share", "more than all", "masked", "scaffold", "median"],
)
def test_study_refuses_what_does_not_go_together(
    compression: dict[str, Any], sections: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(StudyError) as error:
        study(compression, **sections)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("update", "sections"),
    [
        ("none", SECURE),
        ("none", SCAFFOLD),
        ("int8", MEDIAN),
        ("fp16", MEDIAN),
        ("top_k", {"aggregation": {"max_norm": 1.0}}),
        ("top_k", {"federation": {"algorithm": "fednova"}}),
        ("int8", {"federation": {"algorithm": "fedadam"}}),
        ("top_k", {"privacy": {"unit": "patient"}}),
        ("int8", {"privacy": {"unit": "site", "site": {"expected_sites": 5}}}),
    ],
)
def test_study_takes_the_rest(update: str, sections: dict[str, Any]) -> None:
    assert study({"update": update}, **sections).compression.update == update


@pytest.mark.parametrize(
    ("update", "feedback", "keeps", "by_chance"),
    [
        ("none", True, False, False),
        ("fp16", True, False, False),
        ("int8", True, True, False),
        ("int8", False, False, True),
        ("top_k", True, True, False),
        ("top_k", False, False, False),
    ],
)
def test_feedback_is_for_what_loses_something(
    update: str, feedback: bool, keeps: bool, by_chance: bool
) -> None:
    section = study({"update": update, "error_feedback": feedback}).compression
    assert (section.keeps_residual, section.rounds_by_chance) == (keeps, by_chance)
