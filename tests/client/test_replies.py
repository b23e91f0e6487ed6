"""A round that is asked for again costs once: the journal through the real ClientApp, with kills.

What is asked of every history of requests and kills: nothing leaves that was not charged, the same
request in a row is charged once, and once its update may have left it gets the same bits.
"""

import errno
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from flwr.app import Message

from medfed.client.app import app
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.releases import Release, read_releases
from medfed.common import messages
from medfed.common.errors import RefusalReason
from medfed.common.files import write_secret
from medfed.common.ledger import Entry, Ledger
from medfed.common.messages import Refusal, TrainReply, pack_arrays, unpack_reply
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import StateDict, digest, read_state
from medfed.common.study import StudyConfig
from medfed.simulations.grids.local import LocalGrid


def make_study(unit: str = "patient", algorithm: str = "fedavg", **privacy: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "replies"},
            "task": {"classes": ["a", "b"]},
            "data": {"image_size": 16},
            "training": {"local_steps": 2, "batch_size": 4, "momentum": 0.0},
            "federation": {"algorithm": algorithm},
            "privacy": {"unit": unit, "sample_rate": 0.5, "expected_batch_size": 4.0, **privacy},
        }
    )


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = tuple(
        SourceRecord(
            record_id=f"image {n:02d}",
            patient_id=f"patient {n:02d}",
            labels=("a" if n % 2 else "b",),
            source=f"image {n:02d}",
            read_image=lambda n=n: picture(n),
            split="test" if n % 4 == 0 else "train",
        )
        for n in range(16)
    )
    dataset = SourceDataset(
        name="random", licence="", citation="", classes=("a", "b"), records=records, digest="0" * 64
    )
    study = make_study()
    folder = tmp_path_factory.mktemp("store")
    return prepare_store(
        dataset, study.task, study.data, parent=folder, pseudonym_key=b"key"
    ).folder


@dataclass
class Site:
    """One site behind a grid."""

    folder: Path
    store: Path

    def __post_init__(self) -> None:
        self.allow()

    def allow(self, **policy: object) -> None:
        """Write its site.toml."""
        table = {
            "name": "one",
            "data": {"stores": [str(self.store)]},
            "policy": {"max_epsilon": 1000.0, **policy},
        }
        (self.folder / "site.toml").write_text(tomli_w.dumps(table))

    def ask(
        self,
        study: StudyConfig,
        round_number: int = 1,
        num_participants: int = 1,
        correction: StateDict | None = None,
    ) -> TrainReply | Refusal:
        content = messages.pack_model(
            study,
            "run",
            round_number,
            pack_arrays(read_state(build_model(study, 2))),
            frozen_sha256=frozen_state_digest(build_model(study, 2)),
            num_participants=num_participants,
        )(correction=correction)
        with LocalGrid(app, {7: self.folder / "site.toml"}) as grid:
            [reply] = grid.send_and_receive([Message(content, 7, messages.TRAIN)], timeout=60)
        answer = unpack_reply(reply.content)
        assert isinstance(answer, TrainReply | Refusal)
        return answer

    def train(self, study: StudyConfig, round_number: int = 1) -> TrainReply:
        answer = self.ask(study, round_number)
        assert isinstance(answer, TrainReply), answer
        return answer

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def replies(self) -> Path:
        return self.state / "replies"

    @property
    def entries(self) -> tuple[Entry, ...]:
        return Ledger(self.state).entries()

    @property
    def updates(self) -> list[Release]:
        return [r for r in read_releases(self.state)[0] if r.kind == "update"]


@pytest.fixture
def site(tmp_path: Path, store: Path) -> Site:
    return Site(tmp_path, store)


def costs(release: Release) -> dict[str, str]:
    return {quantity.name: quantity.cost for quantity in release.quantities}


@pytest.mark.parametrize("unit", ["patient", "record", "site", "none"])
def test_the_same_request_gets_the_same_reply_and_is_charged_once(site: Site, unit: str) -> None:
    site.allow(unit="none")
    study = make_study(unit, **({"site": {"expected_sites": 3.0}} if unit == "site" else {}))
    first, second = site.train(study), site.train(study)
    assert digest(first.update) == digest(second.update)
    assert list(first.update) == list(second.update)
    facts = ("num_examples", "loss", "epsilon", "noise", "ledger_head")
    assert [getattr(first, name) for name in facts] == [getattr(second, name) for name in facts]
    assert len(site.entries) == 1


def test_a_reply_that_is_sent_again_is_on_the_release_list_as_such(site: Site) -> None:
    site.train(make_study())
    site.train(make_study())
    before, again = site.updates
    assert (
        costs(again)["update"]
        == "sent again, bit for bit what it was before: " + (costs(before)["update"])
    )
    assert [(q.name, q.num_bytes, q.protection) for q in before.quantities] == [
        (q.name, q.num_bytes, q.protection) for q in again.quantities
    ]
    assert before.withheld == again.withheld


def test_number_of_participants_and_name_are_no_part_of_the_request(site: Site) -> None:
    first = site.train(make_study())
    again = site.ask(make_study(), num_participants=3)
    assert isinstance(again, TrainReply)
    assert digest(first.update) == digest(again.update)
    text = (site.folder / "site.toml").read_text()
    (site.folder / "site.toml").write_text(text.replace('"one"', '"two"'))
    renamed = site.train(make_study())
    assert (renamed.site, digest(renamed.update)) == ("two", digest(first.update))


def test_only_the_last_reply_is_kept(site: Site) -> None:
    updates = [digest(site.train(make_study(), number).update) for number in (1, 2)]
    assert sorted(path.name for path in site.replies.iterdir()) == ["lock", "reply.safetensors"]
    # The first round anew: its reply is gone, so it is another release and charged.
    assert digest(site.train(make_study(), 1).update) not in updates
    assert [entry.spend.round_number for entry in site.entries] == [1, 2, 1]


@pytest.mark.parametrize("change", ["study", "frozen", "round"])
def test_another_request_gets_another_update(site: Site, change: str) -> None:
    first = site.train(make_study())
    if change == "frozen":  # refused before anything is charged
        content = messages.pack_model(
            make_study(),
            "run",
            1,
            pack_arrays(read_state(build_model(make_study(), 2))),
            frozen_sha256="another",
        )()
        with LocalGrid(app, {7: site.folder / "site.toml"}) as grid:
            [reply] = grid.send_and_receive([Message(content, 7, messages.TRAIN)], timeout=60)
        assert unpack_reply(reply.content) == Refusal(site="one", reason=RefusalReason.STUDY)
        return
    study = make_study(noise_multiplier=1.5) if change == "study" else make_study()
    second = site.train(study, 2 if change == "round" else 1)
    assert digest(first.update) != digest(second.update)
    assert len(site.entries) == 2


def correction_of(value: float) -> StateDict:
    weights = read_state(build_model(make_study(), 2))
    return {name: np.full_like(array, value) for name, array in weights.items()}


def test_another_correction_is_another_release_and_is_charged(site: Site) -> None:
    study = make_study(algorithm="scaffold")
    first, again, other = (
        site.ask(study, correction=correction_of(value)) for value in (0.5, 0.5, 0.25)
    )
    assert isinstance(first, TrainReply)
    assert isinstance(again, TrainReply)
    assert isinstance(other, TrainReply)
    assert digest(first.update) == digest(again.update) != digest(other.update)
    assert len(site.entries) == 2


@pytest.mark.parametrize("wrong", ["uncalled for", "missing", "other names", "other shape", "nan"])
def test_a_correction_that_does_not_fit_is_refused_before_anything_is_charged(
    site: Site, wrong: str
) -> None:
    correction: StateDict | None = correction_of(1.0)
    assert correction is not None
    name = next(iter(correction))
    if wrong == "missing":
        correction = None
    elif wrong == "other names":
        correction["more"] = correction.pop(name)
    elif wrong == "other shape":
        correction[name] = correction[name][..., None]
    elif wrong == "nan":
        correction[name] = np.full_like(correction[name], np.nan)
    study = make_study(algorithm="fedavg" if wrong == "uncalled for" else "scaffold")
    assert isinstance(site.ask(study, correction=correction), Refusal)
    assert site.entries == ()


def test_no_policy_is_passed_by_when_a_reply_is_sent_again(site: Site) -> None:
    site.train(make_study())
    site.allow(min_participants=2)
    assert site.ask(make_study()) == Refusal(site="one", reason=RefusalReason.POLICY)
    site.allow(tasks=["segmentation"])
    assert site.ask(make_study()) == Refusal(site="one", reason=RefusalReason.POLICY)


def test_a_spent_budget_stops_no_reply_that_was_paid_for(site: Site) -> None:
    first = site.train(make_study())
    assert first.epsilon is not None
    site.allow(max_epsilon=first.epsilon)
    assert digest(site.train(make_study()).update) == digest(first.update)
    assert site.ask(make_study(), 2) == Refusal(site="one", reason=RefusalReason.BUDGET)
    # Of the refused round nothing was charged, and the reply before it is still there.
    assert digest(site.train(make_study()).update) == digest(first.update)


@pytest.mark.parametrize("damage", ["cut", "one bit", "no request", "gone"])
def test_a_damaged_reply_is_trained_and_charged_anew(site: Site, damage: str) -> None:
    first = site.train(make_study())
    path = site.replies / "reply.safetensors"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-8])
    elif damage == "one bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no request":
        path.write_bytes(content.replace(b"request", b"REQUEST"))
    else:
        path.unlink()
    second = site.train(make_study())
    assert digest(first.update) != digest(second.update)
    assert len(site.entries) == 2


def test_journal_can_be_read_by_its_owner_only(site: Site) -> None:
    site.train(make_study())
    assert stat.S_IMODE(site.replies.stat().st_mode) == 0o700
    assert stat.S_IMODE((site.replies / "reply.safetensors").stat().st_mode) == 0o600


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No file of the journal's last step can be written."""

    def fail(path: Path, content: bytes) -> None:
        if path.suffix == ".safetensors":
            path.with_name(f".{path.name}.1.tmp").write_bytes(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_secret(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("medfed.client.replies.write_secret", fail)
        yield patch


def test_a_full_disk_lets_nothing_leave_and_the_charge_counts_when_there_is_room(
    site: Site, full_disk: pytest.MonkeyPatch
) -> None:
    assert site.ask(make_study()) == Refusal(site="one", reason=RefusalReason.INTERNAL)
    assert site.updates == []
    assert len(site.entries) == 1
    assert sorted(path.name for path in site.replies.iterdir()) == ["charging.json", "lock"]
    full_disk.undo()
    reply = site.train(make_study())
    [entry] = site.entries
    assert reply.ledger_head == entry.hash
    assert not (site.replies / "charging.json").exists()


@pytest.mark.parametrize("between", ["another round", "a charge by words", "damage", "gone"])
def test_a_charge_of_which_something_may_have_left_is_not_counted_on(
    site: Site, full_disk: pytest.MonkeyPatch, between: str
) -> None:
    site.ask(make_study())
    full_disk.undo()
    charging = site.replies / "charging.json"
    if between == "another round":
        site.train(make_study(), 2)
    elif between == "a charge by words":
        [entry] = site.entries
        with Ledger(site.state).locked() as ledger:
            ledger.append(entry.spend)
    elif between == "damage":
        charging.write_bytes(charging.read_bytes()[:-9])
    else:
        charging.unlink()
    before = len(site.entries)
    site.train(make_study())
    assert len(site.entries) == before + 1


def test_what_is_kept_of_an_unfinished_round_vouches_for_no_later_one(
    site: Site, full_disk: pytest.MonkeyPatch
) -> None:
    """The evidence of a charge is gone once its update left: it never pays for a second one."""
    site.ask(make_study())
    evidence = (site.replies / "charging.json").read_bytes()
    full_disk.undo()
    site.train(make_study())
    assert not (site.replies / "charging.json").exists()
    (site.replies / "reply.safetensors").unlink()
    assert json.loads(evidence)["head"] == "0" * 64
    site.train(make_study())
    assert len(site.entries) == 2


def test_nothing_is_kept_where_training_again_gives_the_same_bits(site: Site) -> None:
    site.allow(allow_seeded_noise=True)
    first, second = site.train(make_study()), site.train(make_study())
    assert digest(first.update) == digest(second.update)
    assert len(site.entries) == 1
    assert not site.replies.exists()


def test_masked_rounds_are_not_kept(site: Site) -> None:
    table = make_study("none").model_dump()
    table["secure_aggregation"]["enabled"] = True
    site.allow(unit="none")
    assert isinstance(site.ask(StudyConfig.model_validate(table)), Refusal)
    assert not site.replies.exists()


# Reads one request a line. Each is served by a child of this process, which imports once; the child
# dies at the given moment, or says what left. Moments are counted: before and after each call that
# changes what is on the disk, and around training.
SERVING = """
import json, os, sys
from pathlib import Path
import torch._dynamo  # the first optimiser takes seconds to import it
from flwr.app import Message
from medfed.client import answers
import medfed.client.privacy.dp_sgd
from medfed.client.app import app
from medfed.common import messages
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import StateDict, digest, read_state
from medfed.common.study_file import parse_study_json
from medfed.simulations.grids.local import LocalGrid

folder = Path(sys.argv[1])
study = parse_study_json(sys.argv[2])
model = build_model(study, 2)
arrays, frozen = messages.pack_arrays(read_state(model)), frozen_state_digest(model)


def count_and_die(at):
    passed = [0]

    def moment():
        passed[0] += 1
        if passed[0] == at:
            os._exit(9)

    def watched(call):
        def watching(*arguments):
            moment()
            done = call(*arguments)
            moment()
            return done

        return watching

    for name in ("fsync", "replace", "unlink", "truncate"):
        setattr(os, name, watched(getattr(os, name)))
    answers._trained = watched(answers._trained)
    return passed


def serve(number, at):
    content = messages.pack_model(study, "run", number, arrays, frozen_sha256=frozen)()
    with LocalGrid(app, {7: folder / "site.toml"}) as grid:
        passed = count_and_die(at)
        [reply] = grid.send_and_receive([Message(content, 7, messages.TRAIN)], timeout=60)
    answer = messages.unpack_reply(reply.content)
    return {"left": digest(answer.update), "moments": passed[0]}


for line in sys.stdin:
    request = json.loads(line)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writing, json.dumps(serve(request["round"], request["at"])).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


class Serving:
    """A site's process that is started for each request, and killed at a chosen moment."""

    def __init__(self, folder: Path, study: StudyConfig) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVING, str(folder), study.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, round_number: int = 1, at: int = 0) -> dict[str, object] | None:
        """Return what left, and how many moments there were; None if it died at moment `at`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"round": round_number, "at": at}) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        assert code in (0, 9), code
        return dict(json.loads(said)) if code == 0 else None


@pytest.fixture
def serving(site: Site) -> Iterator[Serving]:
    serving = Serving(site.folder, make_study())
    with serving.process:
        yield serving
        assert serving.process.stdin is not None
        serving.process.stdin.close()
        assert serving.process.wait(60) == 0


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 13])
def test_a_round_killed_at_any_moment_and_asked_again_is_charged_once(
    site: Site, serving: Serving, every: int
) -> None:
    first = serving.ask()
    assert first is not None
    moments = int(str(first["moments"]))
    assert moments > 20
    for at in range(1, moments + 1, every):
        shutil.rmtree(site.state)
        assert serving.ask(at=at) is None
        charged = len(site.entries) if (site.state / "ledger.key").exists() else 0
        assert charged <= 1
        again = serving.ask()
        assert again is not None, at
        assert len(site.entries) == 1, f"killed at moment {at} of {moments}"
        assert site.updates, at
        # Once it has left, it leaves as it is.
        last = serving.ask()
        assert last is not None
        assert last["left"] == again["left"]
        assert len(site.entries) == 1


@pytest.mark.slow
def test_no_history_of_kills_lets_out_more_than_was_charged(site: Site, serving: Serving) -> None:
    clock = random.Random(5)
    left: dict[int, set[str]] = {1: set(), 2: set(), 3: set()}
    kills = 0
    for _ in range(120):
        number = clock.choice((1, 1, 1, 2, 3))
        answer = serving.ask(number, at=clock.randrange(60))
        kills += answer is None
        if answer is not None:
            left[number].add(str(answer["left"]))
        charged = [entry.spend.round_number for entry in site.entries]
        for round_number, updates in left.items():
            assert len(updates) <= charged.count(round_number)
    assert kills > 20
    assert sum(map(len, left.values())) > 20
