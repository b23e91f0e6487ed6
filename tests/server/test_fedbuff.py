"""FedBuff's rule against the formula, and what is kept of the sites that are training."""

import math

import numpy as np
import pytest

from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.server.aggregation.choice import rule_for
from medfed.server.aggregation.fedbuff import FedBuff


def weights() -> StateDict:
    return {
        "w": np.array([[1.0, -2.0], [0.5, 3.0]], dtype=np.float32),
        "count": np.array(7, dtype=np.int64),
    }


def updates(number: int) -> list[StateDict]:
    rng = np.random.default_rng(5)
    return [
        {
            "w": rng.standard_normal((2, 2)).astype(np.float32),
            "count": np.array(i, dtype=np.int64),
        }
        for i in range(number)
    ]


def folded(rule: FedBuff, found: list[StateDict]) -> StateDict:
    for i, update in enumerate(found):
        rule.add(update, 1, f"site-{i}")
    return rule.apply()


def test_buffer_is_the_mean_of_updates_divided_by_the_root_of_their_age() -> None:
    ages = {"site-0": 0, "site-1": 3, "site-2": 8}
    found = updates(3)
    new = folded(FedBuff(weights(), 0.5, ages), found)
    # sqrt(1 + 3) = 2, sqrt(1 + 8) = 3; divided by the number of updates, not by 1 + 1/2 + 1/3.
    total = found[0]["w"] / 1.0 + found[1]["w"] / 2.0 + found[2]["w"] / 3.0
    np.testing.assert_allclose(new["w"], weights()["w"] + 0.5 * total / 3, rtol=1e-6)
    assert new["w"].dtype == np.float32
    # Counters: 7 + 0.5 * (0 + 1/2 + 2/3) / 3 = 7.19
    assert (new["count"], new["count"].dtype) == (7, np.int64)


def test_fresh_updates_at_rate_one_are_their_plain_mean() -> None:
    found = updates(4)
    new = folded(FedBuff(weights(), 1.0, {f"site-{i}": 0 for i in range(4)}), found)
    mean = np.mean([u["w"].astype(np.float64) for u in found], axis=0)
    np.testing.assert_array_equal(new["w"], (weights()["w"] + mean).astype(np.float32))


def test_buffer_of_old_updates_moves_less() -> None:
    found = updates(2)
    steps = [
        np.linalg.norm(
            folded(FedBuff(weights(), 1.0, {"site-0": age, "site-1": age}), found)["w"]
            - weights()["w"]
        )
        for age in (0, 3)
    ]
    assert math.isclose(steps[1], steps[0] / 2, rel_tol=1e-5)


def test_buffer_refuses_what_is_not_finite_and_applies_nothing_without_updates() -> None:
    rule = FedBuff(weights(), 1.0, {"a": 0})
    with pytest.raises(UpdateError, match="exceeds"):
        rule.add({"w": np.full((2, 2), np.nan, np.float32), "count": np.array(0)}, 1, "a")
    assert rule.num_updates == 0
    with pytest.raises(UpdateError, match="at least one"):
        rule.apply()


def test_max_norm_bounds_an_update_before_its_age_counts() -> None:
    study: StudyConfig = parse_study(
        {
            "study": {"name": "s"},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 1},
            "federation": {"algorithm": "fedbuff"},
            "privacy": {"unit": "none"},
            "aggregation": {"max_norm": 2.0},
        },
        "study.toml",
    )
    rule = rule_for(study, weights(), ["w"], {}, {"a": 3})
    rule.add({"w": np.full((2, 2), 50, np.float32), "count": np.array(0)}, 1, "a")
    moved = rule.apply()["w"] - weights()["w"]
    np.testing.assert_allclose(np.linalg.norm(moved), 1.0, rtol=1e-6)  # 2 / sqrt(1 + 3)
    assert "scaled" in rule.notes["a"]
