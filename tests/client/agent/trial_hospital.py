"""A small hospital for tests: a store whose patients carry planted names, and messages to it."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from medfed.client.agent.setup import Answers, set_up
from medfed.client.app import app
from medfed.client.audit_log import AuditLog
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.site import load_site
from medfed.common import messages
from medfed.common.messages import Refusal, TrainReply, pack_arrays, unpack_reply
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import read_state
from medfed.common.study import StudyConfig
from medfed.simulations.grids.local import LocalGrid

PLANTED = ("Zyxwvut", "zyxwvut", "ZYXWVUT", "4711")
NUM_PATIENTS = 24


def make_study(unit: str = "patient", **training: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "tiny"},
            "task": {"classes": ["a", "b"]},
            "data": {"image_size": 16},
            "training": {"local_steps": 2, "batch_size": 4, **training},
            "privacy": {
                "unit": unit,
                "sample_rate": 0.25,
                "expected_batch_size": 4.0,
                "noise_multiplier": 1.0,
            },
        }
    )


def make_store(parent: Path, *classes: str, grey: bool = False) -> Path:
    """Return a store of two images a patient, one patient in four held out."""
    names = classes or ("a", "b")

    def picture(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if grey:
            return np.full((16, 16), 7, np.uint8)
        return np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)

    records = tuple(
        SourceRecord(
            record_id=f"Zyxwvut {n}",
            patient_id=f"Zyxwvut 4711 {n // 2:02d}",
            labels=(names[n // 2 % len(names)],),
            source=f"/scans/Zyxwvut/{n}.png",
            read_image=lambda n=n: picture(n),
            split="test" if n // 2 % 4 == 0 else "train",
        )
        for n in range(2 * NUM_PATIENTS)
    )
    dataset = SourceDataset(
        name="Zyxwvut's", licence="", citation="", classes=names, records=records, digest="0" * 64
    )
    study = StudyConfig.model_validate(
        {**make_study().model_dump(exclude_defaults=True), "task": {"classes": list(names)}}
    )
    return prepare_store(
        dataset, study.task, study.data, parent=parent, pseudonym_key=b"key"
    ).folder


def make_site(folder: Path, store: Path, **answers: Any) -> Path:
    """Set up a site as `medfed site init` does and return its site.toml."""
    set_up(folder, Answers(name="clinic", stores=(store,), **answers))
    return folder / "site.toml"


def ask(
    site_file: Path,
    kind: str,
    round_number: int = 1,
    study: StudyConfig | None = None,
    run: str = "run-1/federated",
) -> RecordDict:
    """Put a message through the real ClientApp, and note it as the site's worker does."""
    study = study or make_study()
    model = build_model(study, 2)
    content = messages.pack_model(
        study, run, round_number, pack_arrays(read_state(model)),
        frozen_sha256=frozen_state_digest(model),
    )()  # fmt: skip
    if kind == messages.JOIN:
        request = messages.JoinRequest(study=study, run=run)
        content = messages.pack_join_request(request)
    audit = AuditLog(load_site(site_file).state_folder)
    about: dict[str, str | int] = {
        "run": run,
        "study": study.study.name,
        "kind": kind.removeprefix("query."),
        "round_number": 0 if kind == messages.JOIN else round_number,
    }
    audit.write("asked", **about, bytes=messages.num_bytes(content))
    started = time.perf_counter()
    with LocalGrid(app, {7: site_file}) as grid:
        [reply] = grid.send_and_receive([Message(content, 7, kind)], timeout=60)
    assert not reply.has_error(), reply.error
    answer = unpack_reply(reply.content)
    if isinstance(answer, Refusal):
        audit.write("refused", **about, reason=answer.reason.value)
        return reply.content
    facts: dict[str, float] = {
        "bytes": messages.num_bytes(reply.content),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if isinstance(answer, TrainReply) and answer.epsilon is not None:
        facts["epsilon"] = answer.epsilon
    audit.write("answered", **about, **facts)
    return reply.content
