"""A run in MLflow: an experiment a study, a run a run.

Without MLFLOW_TRACKING_URI everything stays in this folder: `mlflow.db` (SQLite) and `mlruns`,
where `mlflow ui` looks for it by default. MLflow's own reports of its use are off unless
MLFLOW_DISABLE_TELEMETRY says otherwise.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfed.common.errors import RunError
from medfed.simulations.reporting.tables import to_markdown
from medfed.simulations.tracking.facts import RunFacts

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_IDENTITY = "medfed.run"
# What a key may not have, what a batch may hold, and how long a value may be (MLflow's limits).
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. /]")
_MOST_METRICS, _MOST_PARAMS, _LONGEST_VALUE = 1000, 100, 500


def write_to_mlflow(runs: Sequence[RunFacts]) -> str:
    """Write what MLflow does not have of each run yet.

    Returns:
        Where it is.

    Raises:
        RunError: The store cannot be reached, or refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    try:
        client = MlflowClient(tracking_uri=uri)
        for run in runs:
            _write(client, run)
    except MlflowException as error:
        raise RunError(
            f"MLflow at {uri} did not take the run ({error}). The run itself is whole: "
            "`medfed report RUN --track mlflow` tries again."
        ) from None
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else uri


def _write(client: "MlflowClient", run: RunFacts) -> None:
    from mlflow.entities import Metric, Param

    run_id = _find_or_make(client, run)
    names = dict.fromkeys(point.name for point in run.points)
    # What is there decides, not what was noted here: a kill between two writes doubles nothing.
    there = {
        name: {metric.step for metric in client.get_metric_history(run_id, _key(name))}
        for name in names
    }
    metrics = [
        Metric(_key(point.name), point.value, round(point.time_s * 1000), point.step)
        for point in run.points
        if point.step not in there[point.name]
    ]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    params = [Param(_key(k), v[:_LONGEST_VALUE]) for k, v in sorted(run.settings.items())]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
    client.log_text(run_id, to_markdown(run.table), "results.md")
    for path in (run.report, run.folder / "study.toml"):
        if path.exists():
            client.log_artifact(run_id, str(path))
    if run.is_finished:
        client.set_terminated(run_id)


def _find_or_make(client: "MlflowClient", run: RunFacts) -> str:
    """Return MLflow's name of the run, which has ours as a tag."""
    found: Any = client.get_experiment_by_name(run.study)
    if found is None:
        local = "MLFLOW_TRACKING_URI" not in os.environ
        place = (Path.cwd() / "mlruns").as_uri() if local else None
        experiment = str(client.create_experiment(run.study, artifact_location=place))
    else:
        experiment = str(found.experiment_id)
    query = f"tags.`{_IDENTITY}` = '{run.identity}'"
    known = client.search_runs([experiment], filter_string=query, max_results=1)
    if known:
        return str(known[0].info.run_id)
    made = client.create_run(experiment, run_name=run.name, tags={_IDENTITY: run.identity})
    return str(made.info.run_id)


def _key(name: str) -> str:
    return _FORBIDDEN.sub("_", name)
