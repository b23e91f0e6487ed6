"""The table of algorithms in docs/research.md says what studies are held to, cell by cell."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from medfed.common.errors import StudyError
from medfed.common.study import FederationSection
from medfed.common.study.federation import Algorithm
from medfed.common.study_file import parse_study

GUIDE = Path(__file__).parents[2] / "docs" / "research.md"
SITE_LEVEL = {"privacy": {"unit": "site", "site": {"expected_sites": 5}}}
PRIVATE = ({"privacy": {"unit": "patient"}}, {"privacy": {"unit": "record"}})
MASKED = ({"secure_aggregation": {"enabled": True}},)
ROBUST = tuple(
    {"aggregation": {"rule": rule, "num_byzantine": 1}}
    for rule in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median")
)
BOUNDED = ({"aggregation": {"max_norm": 1.0}},)
COLUMNS = (PRIVATE, (SITE_LEVEL,), MASKED, ROBUST, BOUNDED)
WITHOUT = {"error_feedback": False}
SMALL: dict[str, dict[str, Any]] = {
    "fp16": {"update": "fp16"},
    "int8": {"update": "int8"},
    "top_k": {"update": "top_k"},
    "int8 without": {"update": "int8", **WITHOUT},
    "top_k without": {"update": "top_k", **WITHOUT},
}
TAKEN = {
    "all": set(SMALL),
    "none": set(),
    "fp16; int8 and top_k without error_feedback": {"fp16", "int8 without", "top_k without"},
}


def rows() -> dict[str, list[str]]:
    text = GUIDE.read_text().partition("at a glance")[2]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
             if line.startswith("| `")]  # fmt: skip
    return {row[0].strip("`"): row[1:] for row in found if row[0] != "`federation.algorithm`"}


def is_taken(algorithm: str, **sections: dict[str, Any]) -> bool:
    table: dict[str, Any] = {
        "study": {"name": "test"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 1, "momentum": 0.0},
        "federation": {"algorithm": algorithm, "min_sites": 5},
        "model": {"name": "resnet18"},
        "privacy": {"unit": "none"},
    }
    try:
        parse_study({**table, **sections}, "test")
    except StudyError:
        return False
    return True


def test_every_algorithm_is_in_the_table() -> None:
    assert tuple(rows()) == get_args(Algorithm)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_what_an_algorithm_goes_with_is_as_the_table_says(algorithm: str) -> None:
    _, numbers, *answers, small = rows()[algorithm]
    assert is_taken(algorithm)
    for answer, settings in zip(answers, COLUMNS, strict=True):
        for one in settings:
            assert is_taken(algorithm, **one) == {"yes": True, "no": False}[answer], one
    taken = {name for name, own in SMALL.items() if is_taken(algorithm, compression=own)}
    assert taken == TAKEN[small]
    said = {name: float(value) for name, value in re.findall(r"`(\w+)` ([\d.]+)", numbers)}
    written_out = FederationSection(algorithm=algorithm).model_dump(exclude_none=True)
    ordinary = FederationSection().model_dump(exclude_none=True)
    assert said == {name: written_out[name] for name in written_out if name not in ordinary}
