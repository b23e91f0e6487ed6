"""Studies of each kind, and models that answer what they are told to."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from medfed.common.study import StudyConfig


def study_of(**sections: dict[str, Any]) -> StudyConfig:
    """Return a study with these sections; the model is one that fits the task."""
    task = sections["task"].get("type", "classification")
    model = {"classification": "cnn", "segmentation": "unet", "report": "report_lstm"}[task]
    start: dict[str, Any] = {
        "study": {"name": "test"},
        "model": {"name": model},
        "training": {"local_steps": 1},
        "privacy": {"unit": "none"},
    }
    return StudyConfig.model_validate(start | sections)


class Answers(nn.Module):
    """Returns what it is called with: the "images" are the outputs."""

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture
def make_study() -> Callable[..., StudyConfig]:
    return study_of


@pytest.fixture
def answers() -> nn.Module:
    return Answers()
