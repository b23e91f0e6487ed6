"""Run folders whose model has the study's first weights: explaining needs no more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.models import build_model
from medfed.common.state_dicts import read_state
from medfed.common.study_file import parse_study, study_to_toml
from medfed.common.tasks import make_task
from medfed.server.checkpoint import write_weights

WORDS = (".", "clear", "effusion", "heart", "lungs", "no", "the")
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder: `make_run(task={...}, data={...}, model={...})`."""

    def make(name: str = "run", **sections: dict[str, Any]) -> Path:
        study = parse_study(
            {"study": {"name": "tiny", "seed": 3}, "training": {"local_steps": 1}}
            | {"privacy": {"unit": "none"}}
            | sections,
            "the test's study",
        )
        words = WORDS if study.task.type == "report" else ()
        run = tmp_path / name
        arm = run / "arms" / "federated"
        arm.mkdir(parents=True)
        (run / "study.toml").write_text(study_to_toml(study))
        model = build_model(study, make_task(study, words).num_outputs)
        write_weights(arm / "model.safetensors", read_state(model))
        if words:
            (arm / "vocabulary.json").write_text(json.dumps({"words": words, "sites": {}}))
        return run

    return make
