"""What a coordinator may ask of one real hospital, and how its answer is read."""

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
from attacks import files_below, write_study
from deployment import Deployment, deployment
from flwr.app import ConfigRecord, Message, RecordDict

from medfed.client.audit_log import AuditLog
from medfed.common import messages
from medfed.common.messages import JoinRequest, Refusal
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import read_state
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study

SITE = "scanner-1"
# Part of every hostile name, path or program: it must turn up nowhere.
MARK = "evilmark"
POLICY = {
    "unit": "patient",
    "max_epsilon": 3.0,
    "max_steps_per_round": 3,
    "max_parameters": 100_000,
    "max_images_per_patient": 2,
    "max_megapixels": 1.0,
    "min_noise_multiplier": 0.3,
    "tasks": ["classification"],
}
STUDY: dict[str, Any] = {
    "study": {"name": "asked", "seed": 3},
    "task": {"classes": ["normal", "nodule", "effusion", "cardiomegaly"]},
    "data": {"image_size": 16},
    "training": {"rounds": 1, "local_steps": 2},
    "privacy": {
        "unit": "patient",
        "noise_multiplier": 2.0,
        "sample_rate": 0.2,
        "images_per_patient": 2,
        "target_delta": 1e-3,
    },
}


@contextmanager
def one_hospital(folder: Path) -> Iterator[Deployment]:
    """A coordinator and one site, with data and a strict policy; all real processes."""
    with deployment(folder) as deployed:
        study = write_study(folder, "trial")
        deployed.medfed("data", "trial", study, "--out", folder / "hospitals")
        file = folder / "hospitals" / SITE / "site.toml"
        table = {**tomllib.loads(file.read_text()), "policy": POLICY}
        file.write_text(tomli_w.dumps(table))
        deployed.found()
        deployed.start_coordinator()
        deployed.enrol({SITE: file.parent})
        deployed.start_sites()
        yield deployed


@contextmanager
def unharmed(deployed: Deployment) -> Iterator[Path]:
    """The site's folder for the time of the block, after which its processes must be the same."""
    names = ("pid", "worker_pid", "worker_restarts")
    deployed.wait_for("the site", lambda: deployed.is_ready(SITE), 180)
    before = deployed.site_status(SITE)
    yield deployed.sites[SITE]
    deployed.wait_for("the site", lambda: deployed.is_ready(SITE), 180)
    after = deployed.site_status(SITE)
    assert [after[name] for name in names] == [before[name] for name in names]
    check_nothing_hostile(deployed)


def check_nothing_hostile(deployed: Deployment) -> None:
    places = (deployed.folder.parent, Path("/tmp"), Path.home(), Path.cwd())
    found = [path for place in places for path in place.glob(f"*{MARK}*")]
    found += [path for path in files_below(deployed.folder) if MARK in path.name]
    assert found == []


def changed(section: str, **values: Any) -> StudyConfig:
    return parse_study({**STUDY, section: {**STUDY[section], **values}}, "study")


def study_with(**sections: Any) -> StudyConfig:
    return parse_study({**STUDY, **sections}, "study")


def training(
    study: StudyConfig, round_number: int = 1, run: str = "wicked/federated"
) -> RecordDict:
    model = build_model(study, len(study.task.classes))
    return messages.pack_model(
        study,
        run,
        1,
        messages.pack_arrays(read_state(model)),
        frozen_sha256=frozen_state_digest(model),
    )()


def request_of(study: StudyConfig) -> JoinRequest:
    return JoinRequest(study=study, run="wicked/federated")


def joining(**values: Any) -> RecordDict:
    """A request to join, with other values in its record."""
    content = messages.pack_join_request(request_of(parse_study(STUDY, "study")))
    content["medfed"] = ConfigRecord({**content["medfed"], **values})  # type: ignore[dict-item]
    return content


def hostile_study(change: Callable[[dict[str, Any]], None]) -> str:
    """A study's JSON that no study file could give."""
    table = json.loads(parse_study(STUDY, "study").for_sites().to_json())
    change(table)
    return json.dumps(table)


def refusal(reply: Message) -> Refusal:
    """Return the refusal that a reply is, and hold it to say nothing else."""
    content = reply.content
    assert list(content) == ["medfed"]
    assert set(content["medfed"]) == {"version", "kind", "site", "reason"}
    said = messages.unpack_reply(content)
    assert isinstance(said, Refusal), said
    assert said.site == SITE
    return said


def events(site: Path, event: str) -> list[dict[str, Any]]:
    return [dict(e.facts) for e in AuditLog(site / "state").entries() if e.event == event]


def ledger_bytes(site: Path) -> bytes:
    path = site / "state" / "ledger.jsonl"
    return path.read_bytes() if path.exists() else b""
