"""The package of examples/plugins, installed by pip: what it offers, and a study with all of it."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from medfed.client.data.records import SourceDataset
from medfed.common.errors import UpdateError
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study
from medfed.server.aggregation.choice import rule_for
from medfed.simulations.datasets.plugin import Picture, dataset_of_pictures
from medfed.simulations.plugins import complete
from medfed.simulations.study import Options, prepare_run, run_study, start_study

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "plugins"
STUDY = EXAMPLES / "study.toml"


def test_study_names_the_examples_and_their_version(examples: Path) -> None:
    found = complete(load_study(STUDY))
    asked = {"model", "task", "aggregation", "dataset"}
    assert found.plugins.model_dump() == dict.fromkeys(asked, "medfed-examples==0.1.0")
    assert found.model.options == {"width": 8, "depth": 2}
    assert found.simulation is not None
    assert found.simulation.options.chosen() == {"separator": "_"}
    assert complete(found) == found


def agreement(examples: Path, least: float = 0.0) -> StudyConfig:
    return load_study(STUDY, [f"aggregation.options={{least = {least}}}"])


def rule_of(study: StudyConfig, updates: list[list[float]]) -> tuple[StateDict, dict[str, str]]:
    weights = {"w": np.zeros((2, 1), np.float32)}
    rule = rule_for(study, weights, ("w",), {})
    for number, update in enumerate(updates):
        rule.add({"w": np.array(update, np.float32).reshape(2, 1)}, 1, f"site-{number}")
    assert rule.num_updates == len(updates)
    return rule.apply(), dict(rule.notes)


def test_rule_leaves_out_what_points_elsewhere(examples: Path) -> None:
    # Median (1, 0). Cosines with it: 1, 1, -1, so the mean is over the first two.
    new, notes = rule_of(agreement(examples), [[1.0, 0.0], [3.0, 0.0], [-9.0, 0.0]])
    np.testing.assert_allclose(new["w"].ravel(), [2.0, 0.0])
    assert new["w"].dtype == np.float32
    assert notes == {"site-2": "points elsewhere"}


def test_rule_does_not_depend_on_the_order_of_arrival(examples: Path) -> None:
    weights = {"w": np.zeros(50, np.float32)}
    rng = np.random.default_rng(0)
    updates = {f"site-{n}": {"w": rng.normal(size=50).astype(np.float32)} for n in range(5)}
    results = []
    for order in (sorted(updates), sorted(updates, reverse=True)):
        rule = rule_for(agreement(examples), weights, ("w",), {})
        for site in order:
            rule.add(updates[site], 1, site)
        results.append(rule.apply()["w"].tobytes())
    assert results[0] == results[1]


def test_pictures_are_named_by_what_they_are_and_not_by_where(
    pictures: Path, tmp_path: Path
) -> None:
    def dataset(root: Path, **facts: Any) -> SourceDataset:
        files = sorted(root.glob("*/*.png"))
        table = {"patient": "p", "labels": ("x",), **facts}
        return dataset_of_pictures([Picture(file, **table) for file in files], root)

    plain = dataset(pictures, labels=("normal", "effusion"))
    assert plain.classes == ("effusion", "normal")
    assert (plain.name, len(plain.records)) == ("pictures", 40)
    first = plain.records[0]
    assert first.record_id == "effusion/p00_1.png"
    assert first.read_image().shape == (16, 16)
    shutil.copytree(pictures, tmp_path / "elsewhere")
    digests = [dataset(root).digest for root in (pictures, tmp_path / "elsewhere")]
    assert digests[0] == digests[1]
    changes: list[dict[str, Any]] = [
        {"patient": "q"},
        {"labels": ("x", "y")},
        {"split": "test"},
        {"columns": {"sex": "f"}},
    ]
    digests = [digests[0], *(dataset(pictures, **facts).digest for facts in changes)]
    (pictures / "effusion" / "p00_1.png").write_bytes(b"another")
    assert len({*digests, dataset(pictures).digest}) == len(changes) + 2


RULE = """
import numpy as np
from medfed.client.data.records import SourceDataset
from medfed.common.errors import UpdateError
from medfed.common.plugins import Section
from medfed.server.aggregation.plugin import RulePlugin

class Rule:
    notes = {{}}
    num_updates = 0
    def __init__(self, options, weights):
        self.weights = weights
    def add(self, update, weight, site):
        if site == "unwanted":
            raise UpdateError("not that one")
    def apply(self):
        return {result}

own = RulePlugin(Section, Rule)
"""


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("{'w': np.full((2, 1), np.nan, np.float32)}", "w: holds NaN"),
        ("{'w': np.zeros(3, np.float32)}", "w: expected float32 of shape"),
        ("{}", "missing"),
        ("1 / 0", "ZeroDivisionError"),
    ],
    ids=["nan", "shape", "missing", "error"],
)
def test_rule_that_fails_is_told_with_its_package(
    install: Callable[..., None], result: str, said: str
) -> None:
    install("rules", RULE.format(result=result), "[medfed.aggregation]", "own = rules:own")
    table: dict[str, Any] = {
        "study": {"name": "test"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 1},
        "aggregation": {"rule": "own"},
    }
    study = complete(StudyConfig.model_validate(table))
    weights = {"w": np.zeros((2, 1), np.float32)}
    rule = rule_for(study, weights, ("w",), {})
    rule.add(weights, 1, "site-1")
    with pytest.raises(UpdateError, match="not that one"):
        rule.add(weights, 1, "unwanted")
    assert rule.num_updates == 1
    with pytest.raises(Exception, match=r"plug-in own of rules==1\.0") as caught:
        rule.apply()
    assert said in str(caught.value)


@pytest.mark.slow
def test_study_with_all_four_runs_and_is_reported(
    medfed: Callable[..., Any], examples: Path, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = medfed("simulate", STUDY, "--data", pictures, "--out", run)
    assert "AUROC" in done.stdout
    resolved = tomllib.loads((run / "study.toml").read_text())
    assert set(resolved["plugins"].values()) == {"medfed-examples==0.1.0"}
    for site in run.glob("arms/federated/sites/*/site.toml"):
        assert tomllib.loads(site.read_text())["policy"]["allow_plugins"] == ["medfed-examples"]
    page = (run / "report.html").read_text()
    assert "tiny_net" in page
    assert "ROC curve" in page  # the task extends classification, so the page has all of it
    rounds = (run / "arms" / "federated" / "rounds.jsonl").read_text()
    again = tmp_path / "again"
    medfed("simulate", STUDY, "--data", pictures, "--out", again)
    weights = [r / "arms" / "federated" / "model.safetensors" for r in (run, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert len(rounds.splitlines()) == 2


@pytest.mark.slow
def test_hospital_that_did_not_allow_the_package_takes_no_part(
    examples: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    study = complete(load_study(STUDY, ["federation.min_sites=1"]))
    start_study(study, run, pictures, Options())
    prepare_run(run)
    file = run / "arms" / "federated" / "sites" / "site-1" / "site.toml"
    table = tomllib.loads(file.read_text())
    del table["policy"]["allow_plugins"]
    file.write_text(tomli_w.dumps(table))
    run_study(run, Options())
    events = (run / "arms" / "federated" / "events.jsonl").read_text()
    assert re.search(r'"site-1"[^\n]*policy|policy[^\n]*"site-1"', events)
    rounds = [
        json.loads(line)
        for line in (run / "arms" / "federated" / "rounds.jsonl").read_text().splitlines()
    ]
    assert len(rounds) == 2
    assert not (file.parent / "state" / "ledger.jsonl").exists()
    assert (file.parents[1] / "site-2" / "state" / "ledger.jsonl").exists()


OWN_TASK = """
import numpy as np
from torch.nn.functional import mse_loss
from medfed.common.plugins import Section, TaskPlugin
from medfed.common.tasks import Figure

class Position:
    num_outputs = 1
    figures = (Figure("error", "Squared error", higher_is_better=False), Figure("count", "Images"))
    families = {"loss": ("error",)}
    def __init__(self, options, study):
        pass
    def targets(self, examples):
        import torch
        return torch.from_numpy(examples.labels.astype("float32"))
    def inputs(self, images, extras, targets):
        return (images,)
    def loss_per_image(self, outputs, targets):
        return mse_loss(outputs[:, 0], targets, reduction="none")
    def evaluate(self, model, batch):
        losses = self.loss_per_image(model(*batch.inputs), batch.targets)
        error = np.rint(losses.double().sum().numpy() * 2**20).astype(np.int64)
        return {"count": np.array(len(losses)), "error": np.array(error)}
    def sum_shapes(self):
        return {"count": (), "error": ()}
    def metrics(self, sums):
        found = {"count": float(sums["count"])}
        if "error" in sums and sums["count"]:
            found["error"] = float(sums["error"] / sums["count"] / 2**20)
        return found

own = TaskPlugin(Section, Position)
"""


@pytest.mark.slow
def test_task_that_extends_none_of_medfeds_has_curves_and_tables(
    medfed: Callable[..., Any],
    install: Callable[..., None],
    examples: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    install("own-task", OWN_TASK, "[medfed.tasks]", "position = own_task:own")
    run = tmp_path / "run"
    task = ("--set", "task.plugin=position", "--set", "task.options={}")
    medfed("simulate", STUDY, "--data", pictures, "--out", run, *task)
    page = (run / "report.html").read_text()
    assert "Squared error" in page
    assert "a plug-in of own-task==1.0" in page
    picture = next(pictures.glob("*/*.png"))
    said = medfed("explain", run, "--image", picture, code=6)
    assert "Only its authors can" in said.stderr
