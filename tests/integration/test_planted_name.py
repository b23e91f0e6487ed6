"""Two hospitals with a patient's name in everything they have: it must turn up nowhere else.

The name is the patient's identifier, in file names, in reports, in folders, and in the text of what
goes wrong: a damaged image, a refused study, a store that vanishes, a program that fails.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tomli_w
from attacks import holding
from deployment import Deployment, deployment

from medfed.client.agent.folder import AgentFolder
from medfed.client.agent.metrics import metrics_text
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.site import load_site
from medfed.common.errors import UnreadableImageError
from medfed.common.study_file import load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "Mustermann"
SITES = ("site-a", "site-b")
STUDY = """
[study]
name = "{name}"
seed = 1
[task]
type = "report"
[task.report]
max_words = 6
min_patients = 4
words_per_patient = 20
words_noise_multiplier = 0.2
words_delta = 0.01
beam_size = 1
[data]
image_size = 16
[model]
name = "report_lstm"
embedding_size = 4
hidden_size = 4
attention_size = 4
[training]
rounds = 1
local_steps = {steps}
learning_rate = 0.1
[federation]
min_sites = 1
join_timeout_s = 60
round_timeout_s = 120
lost_after_s = 5
[privacy]
unit = "patient"
noise_multiplier = 1.0
sample_rate = 0.3
images_per_patient = 1
target_delta = 1e-2
"""
POLICY = {
    "max_epsilon": 100_000.0,
    "target_delta": 0.1,
    "max_steps_per_round": 4,
    "min_patients_per_word": 3,
    "min_patients_per_count": 1,
    "release_evaluation": True,
}
# In site-b's worker: what no except clause of ours names; it is caught, and told as a code.
_FAULT = """
import sys
from pathlib import Path

if "medfed.client.agent.worker" in sys.orig_argv:
    from medfed.client import answers

    honest = answers.train

    def train(request, site, memory):
        if Path({switch!r}).exists():
            raise KeyError("patient {name}^Erika, /archive/{name}/ct.dcm")
        return honest(request, site, memory)

    answers.train = train
"""


def image(number: int) -> npt.NDArray[np.uint8]:
    if number == 5:
        raise UnreadableImageError(f"/archive/{NAME}/{number}.png is damaged: {NAME}^Erika")
    return np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)


def records() -> tuple[SourceRecord, ...]:
    return tuple(
        SourceRecord(
            record_id=f"{NAME}_{number}.png",
            patient_id=f"{NAME}^Erika^{number}",
            labels=(),
            source=f"/archive/{NAME}/{number}.png",
            read_image=lambda number=number: image(number),
            split="test" if number % 4 == 0 else "train",
            # Two patients' reports name her; everybody's hold the other words.
            report=f"Heart normal . No effusion . {f'{NAME} was seen .' * (number in (1, 2))}",
        )
        for number in range(32)
    )


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("planted")) as deployed:
        write_study(deployed, "plain")
        write_sites(deployed)
        deployed.found()
        deployed.start_coordinator()
        deployed.enrol({name: deployed.folder / name for name in SITES})
        deployed.start_site(SITES[0])
        deployed.start_site(SITES[1], environment={"PYTHONPATH": python_path(deployed)})
        deployed.wait_for_sites(300)
        yield deployed


def write_study(deployed: Deployment, name: str, steps: int = 2) -> Path:
    path = deployed.folder / f"{name}.toml"
    path.write_text(STUDY.format(name=name, steps=steps))
    return path


def write_sites(deployed: Deployment) -> None:
    study = load_study(deployed.folder / "plain.toml")
    dataset = SourceDataset(
        name="archive", licence="", citation="", classes=(), records=records(), digest="0" * 64
    )
    for name in SITES:
        archive = deployed.folder / "archives" / f"{NAME}-{name}"
        store = prepare_store(
            dataset, study.task, study.data, parent=archive, pseudonym_key=name.encode()
        )
        assert store.num_quarantined == 1
        folder = deployed.folder / name
        folder.mkdir()
        table = {"name": name, "data": {"stores": [str(store.folder)]}, "policy": POLICY}
        (folder / "site.toml").write_text(tomli_w.dumps(table))


def python_path(deployed: Deployment) -> str:
    folder = deployed.folder / "faulty"
    folder.mkdir()
    code = _FAULT.format(switch=str(deployed.folder / "fail"), name=NAME)
    (folder / "sitecustomize.py").write_text(code)
    return ":".join([str(folder), *filter(None, [deployed.environment.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def failed(federation: Deployment) -> dict[str, dict[str, str]]:
    """Runs in which site-b stumbles in every way; return what the records say of it."""
    said = {"plain": statuses(federation.run(write_study(federation, "plain"), "plain"))}
    refusing = write_study(federation, "refused", steps=4)
    file = federation.sites[SITES[1]] / "site.toml"
    allowed = file.read_text()
    file.write_text(allowed.replace("max_steps_per_round = 4", "max_steps_per_round = 3"))
    said["refused"] = statuses(federation.run(refusing, "refused"))
    file.write_text(allowed)
    (federation.folder / "fail").touch()
    said["exception"] = statuses(federation.run(write_study(federation, "exception"), "exception"))
    (federation.folder / "fail").unlink()
    [store] = (federation.folder / "archives" / f"{NAME}-{SITES[1]}").iterdir()
    store.rename(store.with_name("moved"))
    said["vanished"] = statuses(federation.run(write_study(federation, "vanished"), "vanished"))
    return said


def statuses(arm: Path) -> dict[str, str]:
    [record] = [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (arm / "events.jsonl").read_text().splitlines()]
    refused = {e["site"]: f"refused {e['reason']}" for e in events if e["event"] == "refused"}
    sites = {name: f"{s['status']} {s['reason']}".strip() for name, s in record["sites"].items()}
    return {**refused, **sites}


def test_failures_are_told_as_codes(failed: dict[str, dict[str, str]]) -> None:
    assert failed["plain"] == dict.fromkeys(SITES, "ok")
    assert failed["refused"] == {SITES[0]: "ok", SITES[1]: "refused policy"}
    assert failed["exception"][SITES[1]] == "refused internal"
    assert failed["vanished"][SITES[1]].startswith("refused ")
    assert all(said[SITES[0]] == "ok" for said in failed.values())


def test_name_is_nowhere_at_the_coordinator(
    federation: Deployment, failed: dict[str, dict[str, str]]
) -> None:
    vocabulary = federation.home / "runs" / "plain" / "arms" / "federated" / "vocabulary.json"
    assert "heart" in vocabulary.read_text()  # words did leave
    assert len(list(federation.home.rglob("*"))) > 50
    assert holding(federation.home, [NAME.encode(), b"Erika", b"archive"]) == []


def test_name_is_in_nothing_that_a_site_shows(
    federation: Deployment, failed: dict[str, dict[str, str]]
) -> None:
    for name in SITES:
        file = federation.sites[name] / "site.toml"
        for command in (
            ("log", file, "--last", "0"),
            ("log", file, "--json"),
            ("status", file),
            ("status", file, "--json"),
            ("releases", file),
            ("releases", file, "--json"),
            ("ledger", "show", file),
        ):
            shown = federation.medfed("site", *command)
            assert len(shown) > 20, command
            assert NAME.lower() not in shown.lower(), command
            assert "erika" not in shown.lower(), command
        site = load_site(file)
        assert NAME.lower() not in metrics_text(site).lower()


def test_only_the_store_and_the_workers_log_hold_the_name(
    federation: Deployment, failed: dict[str, dict[str, str]]
) -> None:
    for name in SITES:
        state = federation.sites[name] / "state"
        logs = AgentFolder(load_site(federation.sites[name] / "site.toml")).logs
        found = holding(state, [NAME.encode(), b"Erika"])
        assert set(found) <= {logs / "worker.log"}, found
        console = (federation.folder / f"site-{name}.log").read_bytes().lower()
        assert NAME.lower().encode() not in console
    # The test can fail: what went wrong is told where it belongs.
    text = (federation.sites[SITES[1]] / "state" / "agent" / "logs" / "worker.log").read_text()
    assert f"{NAME}^Erika" in text
