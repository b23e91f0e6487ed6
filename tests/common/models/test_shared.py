"""What of a model travels: all that trains, but with fedbn no normalisation."""

from typing import Any

import pytest

from medfed.common.errors import StudyError
from medfed.common.models import (
    build_model,
    check_model,
    local_names,
    shared_names,
    shared_state,
    trained_names,
)
from medfed.common.study import StudyConfig


def make_study(algorithm: str = "fedbn", **model: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "shared"},
            "task": {"classes": ["a", "b"]},
            "data": {"image_size": 34},
            "model": {"name": "resnet18", **model},
            "training": {"local_steps": 1},
            "federation": {"algorithm": algorithm},
            "privacy": {"unit": "none"},
        }
    )


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_normalisations_stay_and_all_else_that_trains_travels(norm: str) -> None:
    study = make_study(norm=norm)
    model = build_model(study, 2)
    local, shared = local_names(model, study), shared_names(model, study)
    assert set(local).isdisjoint(shared)
    assert {*local, *shared} == set(trained_names(model))
    # A ResNet-18 has 20 normalisations; a BatchNorm also has mean, variance and a counter.
    assert len(local) == 20 * (5 if norm == "batch" else 2)
    assert all("bn" in name or "downsample.1" in name for name in local)
    assert list(shared_state(model, study)) == list(shared)


def test_without_fedbn_all_that_trains_travels() -> None:
    study = make_study("ditto", norm="batch")
    model = build_model(study, 2)
    assert local_names(model, study) == ()
    assert shared_names(model, study) == trained_names(model)


@pytest.mark.parametrize(
    "model", [{"freeze": "backbone"}, {"low_rank": 2}, {"freeze": ["*conv*", "*fc*", "*.0.weight"]}]
)
def test_fedbn_needs_normalisations_and_more_that_train(model: dict[str, Any]) -> None:
    study = make_study(**model)
    with pytest.raises(StudyError, match="expected a model in which normalisations train"):
        check_model(study)
    with pytest.raises(StudyError, match="normalisations train"):
        shared_names(build_model(study, 2), study)
    check_model(make_study("fedavg", **model))
