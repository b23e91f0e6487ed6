"""MLflow and TensorBoard: read back with their own readers, after kills, resumes and sweeps."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.errors import RunError
from medfed.server import loop
from medfed.server.records import ArmFolder
from medfed.simulations import tracking
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.tracking import check_tool, track
from medfed.simulations.tracking.facts import facts_of

Medfed = Callable[..., Any]
QUICK = ("--set", "training.rounds=2", "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which a tool's own defaults land."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_tool_that_is_not_installed_is_said_before_anything_is_trained(
    medfed: Medfed, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    done = medfed("simulate", tiny, "--out", "run", "--track", "mlflow", code=RunError.exit_code)
    assert "pip install 'medfed[mlflow]'" in done.stderr
    assert not Path("run").exists()
    with pytest.raises(RunError, match="mlflow or tensorboard, got 'wandb'"):
        check_tool("wandb")


@pytest.mark.slow
def test_tensorboard_has_each_point_once_after_a_kill_and_a_resume(
    medfed: Medfed, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save = loop.save_checkpoint

    def die_in_round_2(*arguments: Any) -> None:
        save(*arguments)
        if arguments[1].record.round_number == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", die_in_round_2)
    medfed("simulate", tiny, "--out", "run", "--track", "tensorboard", "--quiet", code=130)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    track(Path("run"), "tensorboard")  # as from another shell, while it goes on
    done = medfed("simulate", "--resume", "run", "--track", "tensorboard", "--quiet")
    assert "tensorboard --logdir run" in done.stdout
    medfed("report", "run", "--track", "tensorboard")
    found = EventAccumulator("run/tensorboard/federated").Reload()
    run = load_run(Path("run"))
    assert run.federated is not None
    for key in ("auroc", "epsilon", "bytes", "update_bytes"):
        points = [point[2:] for point in facts_of(run).points if point.name == f"federated/{key}"]
        events = found.Scalars(key)
        assert [event.step for event in events] == [1, 2, 3]
        for event, (step, value, time_s) in zip(events, points, strict=True):
            assert (event.step, event.value) == (step, pytest.approx(value, rel=1e-6))
            assert event.wall_time == pytest.approx(time_s, abs=0.01)
    found = EventAccumulator("run/tensorboard").Reload()
    [settings] = found.Tensors("study/text_summary")
    assert b"training.learning_rate = 0.1" in settings.tensor_proto.string_val[0]
    [table] = found.Tensors("results/text_summary")
    assert b"| Federated |" in table.tensor_proto.string_val[0]
    moved = Path("run").rename("a run")
    assert track(moved, "tensorboard") == "tensorboard --logdir 'a run'"  # to be typed


@pytest.mark.slow
def test_mlflow_has_a_run_once_with_settings_figures_and_report(
    medfed: Medfed, tiny: Path, here: Path
) -> None:
    from mlflow.tracking import MlflowClient

    medfed("simulate", tiny, "--out", "plain", *QUICK)
    medfed("simulate", tiny, "--out", "run", *QUICK, "--track", "mlflow")
    plain, tracked = (Path(run, "arms/federated/model.safetensors") for run in ("plain", "run"))
    assert plain.read_bytes() == tracked.read_bytes()
    # Again, and of a run that had lost its last round when it was looked at first.
    rounds = ArmFolder(Path("plain/arms/federated")).read_rounds()
    ArmFolder(Path("plain/arms/federated")).rewrite_rounds(rounds[:1])
    track(Path("plain"), "mlflow")
    ArmFolder(Path("plain/arms/federated")).rewrite_rounds(rounds)
    for name in ("plain", "run", "run"):
        assert "mlflow.db" in track(Path(name), "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{here / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"plain", "run"}
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.data.params["training.learning_rate"] == "0.1"
        assert run.data.params["study.seed"] == "3"
        points = [p for p in facts_of(load_run(Path(name))).points if p.name == "federated/auroc"]
        history = client.get_metric_history(run.info.run_id, "federated/auroc")
        assert [(m.step, m.value) for m in history] == [(p.step, p.value) for p in points]
        assert len(points) == 2
        assert run.data.metrics["federated/epsilon"] > 0
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {"report.html", "results.md", "study.toml"}
    kept = Path(client.download_artifacts(found["run"].info.run_id, "report.html", str(here)))
    assert kept.read_bytes() == Path("run/report.html").read_bytes()


@pytest.mark.slow
def test_a_sweep_is_a_run_of_the_tool_for_each_of_its_runs_where_the_user_says(
    medfed: Medfed, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'elsewhere.db'}")
    tiny.write_text(tiny.read_text() + '[sweep.vary]\n"federation.apfl_alpha_rate" = [0.5, 0.0]\n')
    apfl = ("--set", "federation.algorithm=apfl", "--set", "privacy.unit=none")
    arms = ("--set", 'simulation.arms=["federated", "pooled"]')
    medfed("simulate", tiny, "--out", "swept", *QUICK, *apfl, *arms, "--track", "mlflow")
    assert not Path("mlflow.db").exists()
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_name: run for run in found}
    rates = {name: run.data.params["federation.apfl_alpha_rate"] for name, run in runs.items()}
    assert rates == {"c001-s3": "0.5", "c002-s3": "0.0"}
    # What sites learned, by round, as their own folders have it; nothing where alpha is fixed.
    run = load_run(Path("swept/runs/c001-s3"))
    assert run.federated is not None
    assert len(run.federated.alphas) == 3
    for site, by_round in run.federated.alphas.items():
        key, run_id = f"federated/alpha/{site}", runs["c001-s3"].info.run_id
        history = client.get_metric_history(run_id, key)
        assert {metric.step: metric.value for metric in history} == by_round
        assert by_round[1] == 0.5
        assert by_round[2] != 0.5
    assert not [key for key in runs["c002-s3"].data.metrics if "alpha" in key]

    track(Path("swept"), "tensorboard")
    varied = {run: _hyperparameters(Path("swept/runs", run, "tensorboard")) for run in runs}
    assert varied == {
        "c001-s3": {"federation.apfl_alpha_rate": 0.5},
        "c002-s3": {"federation.apfl_alpha_rate": 0.0},
    }
    of_arms = Path("swept/runs/c001-s3/tensorboard").iterdir()
    assert {path.name for path in of_arms if path.is_dir()} == {"federated", "pooled"}
    assert len(list(Path("swept").glob("runs/*/tensorboard/events.*"))) == 2


def _hyperparameters(folder: Path) -> dict[str, float | str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(folder)).Reload()
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found.Scalars("last/auroc")
    return {key: value.number_value for key, value in settings.items()}


@pytest.mark.slow
def test_a_run_without_track_loads_neither_tool() -> None:
    code = (
        "import sys, medfed.cli, medfed.cli.simulate; "
        "assert not {'mlflow', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
