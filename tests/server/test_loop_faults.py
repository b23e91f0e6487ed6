"""Whole runs with real training over a SuperLink's own bookkeeping, while sites and server die.

In every case: nothing is lost, at most the round in progress is done again, and no site's ledger is
charged twice for one release. Noise is the operating system's, so that a second release would
be another one.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dying import SITES, Federation, die, first_updates, once, statuses
from flwr.app import Context, Message
from link import HEARTBEAT_S, Killed, superlink

from medfed.client import answers
from medfed.client.site import SiteConfig, load_site
from medfed.client.training import TrainingResult
from medfed.common import messages
from medfed.common.errors import RefusalReason, RunError
from medfed.common.ledger import Ledger
from medfed.common.messages import Refusal
from medfed.server.records import ArmFolder, SiteRound, now

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def federation(prepared: Callable[..., Path]) -> Iterator[Federation]:
    with superlink() as link:
        made = Federation(link, prepared())
        yield made
        assert made.failed == []


def test_a_site_killed_in_training_is_asked_again_and_charged_once(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.add(*SITES)
    node = federation.node("scanner-2")
    trained = answers._trained
    killed: list[int] = []

    def die_once(here: object, request: object, site: SiteConfig) -> TrainingResult:
        if site.name == "scanner-2" and not killed:
            killed.append(1)
            node.kill()
            threading.Timer(0.2, node.start).start()
            raise Killed
        return trained(here, request, site)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "_trained", die_once)
    federation.run()
    assert killed
    for name in SITES:
        assert federation.charged(name) == [1, 2, 3]
        assert statuses(federation.records, name) == ["ok"] * 3
    assert [kind for kind, _ in node.handled].count(messages.TRAIN) >= 4
    assert first_updates(federation, "scanner-2") == [1, 2, 3]


def test_a_site_killed_before_its_update_was_sent_sends_it_again_for_nothing(
    federation: Federation,
) -> None:
    federation.add(*SITES)
    node = federation.node("scanner-2")

    def restart() -> None:
        threading.Timer(0.2, node.start).start()
        die(node)

    federation.after = once(messages.TRAIN, 2, "scanner-2", restart)
    federation.run()
    assert federation.charged("scanner-2") == [1, 2, 3]
    assert statuses(federation.records, "scanner-2") == ["ok"] * 3
    assert first_updates(federation, "scanner-2") == [1, 2, 3]
    assert (2, True) in federation.updates("scanner-2")


def test_a_lost_site_is_left_out_is_away_then_and_rejoins(federation: Federation) -> None:
    federation.add(*SITES)
    node = federation.node("scanner-3")
    federation.before = once(messages.TRAIN, 1, "scanner-3", lambda: die(node))
    restarted = threading.Event()

    def back() -> None:
        node.start()
        deadline = time.monotonic() + 120
        while not federation.events("rejoined") and time.monotonic() < deadline:
            time.sleep(0.01)
        restarted.set()

    def restart_in_round_2(name: str, message: Message) -> None:
        about = (name, message.metadata.message_type, message.metadata.group_id)
        if about == ("scanner-1", messages.TRAIN, "2"):
            threading.Thread(target=back).start()
            time.sleep(1.0)  # it is back while round 2 is under way

    federation.after = restart_in_round_2
    federation.run()
    first, second, third = federation.records
    assert first.sites["scanner-3"] == SiteRound(
        status="lost", reason="not connected any more",
        bytes_down=first.sites["scanner-3"].bytes_down,
    )  # fmt: skip
    assert (second.sites["scanner-3"].status, second.sites["scanner-3"].reason) == (
        "away", "not connected",
    )  # fmt: skip
    assert third.sites["scanner-3"].status == "ok"
    assert [e["site"] for e in federation.events("lost", "rejoined")] == ["scanner-3"] * 2
    assert first.seconds < 30  # not until the deadline
    # It was killed before it could charge round 1.
    assert federation.charged("scanner-3") == [3]
    assert restarted.wait(20)


def test_evaluation_does_not_wait_for_a_lost_site(federation: Federation) -> None:
    federation.add(*SITES)
    node = federation.node("scanner-3")
    federation.before = once(messages.EVALUATE, 1, "scanner-3", lambda: die(node))
    federation.run()
    first = federation.records[0]
    assert first.seconds < 30
    assert first.sites["scanner-3"].status == "ok"
    assert first.sites["scanner-3"].metrics is None
    assert first.sites["scanner-1"].metrics is not None
    assert statuses(federation.records, "scanner-3") == ["ok", "away", "away"]


def test_a_site_that_comes_late_takes_part_from_then_on(federation: Federation) -> None:
    federation.add("scanner-1", "scanner-2")
    joined = threading.Event()

    def come(name: str, message: Message) -> None:
        if message.metadata.message_type == messages.TRAIN and not joined.is_set():
            joined.set()
            federation.add("scanner-3")

    federation.before = come
    federation.run(expected_sites=2)
    assert statuses(federation.records, "scanner-3")[0] == "-"
    assert statuses(federation.records, "scanner-3")[-1] == "ok"
    assert federation.records[-1].sites["scanner-3"].metrics
    assert federation.charged("scanner-3") in ([2, 3], [3])


def test_a_run_without_quorum_waits_for_its_sites_and_goes_on(federation: Federation) -> None:
    federation.add(*SITES)
    away = [federation.node(name) for name in ("scanner-2", "scanner-3")]

    def cut() -> None:
        for node in away:
            node.connected = False
        time.sleep(4 * HEARTBEAT_S)  # the round does not end before they count as offline

    def heal_when_waiting() -> None:
        deadline = time.monotonic() + 120
        while not federation.events("waiting") and time.monotonic() < deadline:
            time.sleep(0.01)
        for node in away:
            node.connected = True

    federation.after = once(messages.EVALUATE, 1, "scanner-1", cut)
    healing = threading.Thread(target=heal_when_waiting)
    healing.start()
    federation.run()
    healing.join()
    told = [str(event["reason"]) for event in federation.events("waiting")]
    assert "1 sites were connected and willing, the quorum is 2" in told[0]
    assert "scanner-2 (not connected), scanner-3 (not connected)" in told[0]
    assert len(federation.records) == 3
    # One of the two may be back a heartbeat before the other, and the quorum is two: the round that
    # was waited for then goes on without the last one.
    charged = {name: federation.charged(name) for name in SITES}
    assert charged.pop("scanner-1") == [1, 2, 3]
    assert sorted(charged.values()) in ([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 3]])


def test_a_run_without_quorum_fails_when_time_is_up_and_resumes(
    federation: Federation, prepared: Callable[..., Path]
) -> None:
    short = Federation(federation.link, prepared("federation.rejoin_timeout_s=1.5"))
    short.add(*SITES)
    away = [short.node(name) for name in ("scanner-2", "scanner-3")]

    def cut() -> None:
        for node in away:
            node.connected = False
        time.sleep(4 * HEARTBEAT_S)  # the round does not end before they count as offline

    short.after = once(messages.EVALUATE, 1, "scanner-1", cut)
    with pytest.raises(RunError, match=r"Before round 2 1 sites .* Nothing is lost: resume"):
        short.run()
    assert len(short.records) == 1
    for node in away:
        node.connected = True
    short.run()
    assert len(short.records) == 3
    for name in SITES:
        assert short.charged(name) == [1, 2, 3]


def paused(site: str) -> Callable[[Message, Context], Message]:
    content = messages.pack_refusal(Refusal(site=site, reason=RefusalReason.PAUSED))
    return lambda message, context: Message(content, reply_to=message)


def test_a_paused_site_is_recorded_as_such_and_asked_again_in_the_next_round(
    federation: Federation,
) -> None:
    federation.add(*SITES)
    node = federation.node("scanner-3")
    works = node.app

    def pause_in_round_1(message: Message, context: Context) -> Message:
        about = (message.metadata.message_type, message.metadata.group_id)
        app = paused("scanner-3") if about == (messages.TRAIN, "1") else works
        return app(message, context)

    node.app = pause_in_round_1
    federation.run()
    first = federation.records[0].sites["scanner-3"]
    assert (first.status, first.reason) == ("refused", "paused")
    assert statuses(federation.records, "scanner-3")[1:] == ["ok", "ok"]
    [event] = federation.events("refused")
    assert (event["site"], event["reason"], event["round"]) == ("scanner-3", "paused", 1)


def test_a_round_that_pauses_left_short_is_repeated_when_they_end_and_charged_once(
    federation: Federation,
) -> None:
    federation.add(*SITES)
    resumed = threading.Event()
    for name in ("scanner-2", "scanner-3"):
        node = federation.node(name)

        def pausing(
            message: Message, context: Context, works=node.app, name=name
        ) -> Message:  # fmt: skip
            starts = message.metadata.message_type == messages.JOIN and not resumed.is_set()
            if resumed.is_set() or (starts and not federation.arm.folder.joinpath("go").exists()):
                return works(message, context)
            return paused(name)(message, context)

        node.app = pausing

    def go_on() -> None:
        deadline = time.monotonic() + 120
        while not federation.events("round") and time.monotonic() < deadline:
            time.sleep(0.01)
        (federation.arm.folder / "go").touch()  # they joined; from now on they pause
        while not federation.events("waiting") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.0)
        resumed.set()

    (federation.arm.folder / "events.jsonl").touch()
    thread = threading.Thread(target=go_on)
    thread.start()
    federation.run()
    thread.join()
    told = str(federation.events("waiting")[0]["reason"])
    assert "scanner-2 (paused), scanner-3 (paused)" in told
    for name in SITES:
        assert federation.charged(name) == [1, 2, 3]
    assert first_updates(federation, "scanner-1") == [1, 2, 3]
    assert (1, True) in federation.updates("scanner-1")
    # They were probed with the small message, not sent the model again and again.
    kinds = [kind for kind, _ in federation.node("scanner-2").handled]
    assert 4 <= kinds.count(messages.TRAIN) <= 6


@pytest.mark.parametrize("reason", [RefusalReason.BUDGET, RefusalReason.INTERNAL])
def test_a_refusal_ends_a_sites_part_if_it_is_for_good(
    federation: Federation, reason: RefusalReason
) -> None:
    federation.add(*SITES)
    node = federation.node("scanner-3")
    works = node.app
    content = messages.pack_refusal(Refusal(site="scanner-3", reason=reason))

    def refuse_in_round_1(message: Message, context: Context) -> Message:
        about = (message.metadata.message_type, message.metadata.group_id)
        if about == (messages.TRAIN, "1"):
            return Message(content, reply_to=message)
        return works(message, context)

    node.app = refuse_in_round_1
    federation.run()
    first = federation.records[0].sites["scanner-3"]
    assert (first.status, first.reason) == ("refused", reason.value)
    asked = federation.charged("scanner-3")
    assert asked == ([] if reason.is_final else [2, 3])


def test_what_the_gate_turned_away_is_on_record_and_not_waited_for(
    federation: Federation, tmp_path: Path
) -> None:
    federation.add(*SITES)
    rejections = tmp_path / "rejections.jsonl"
    rejections.write_text(
        json.dumps({"time": now(), "site": "scanner-1", "what": "/x", "reason": "old"}) + "\n"
    )
    node = federation.node("scanner-3")
    works = node.app

    def too_large(message: Message, context: Context) -> Message | None:
        reply = works(message, context)
        if message.metadata.message_type != messages.TRAIN:
            return reply
        line = {"time": now(), "site": "scanner-3", "what": "/v1/fleet/push-object"}
        with rejections.open("a") as file:
            file.write(json.dumps({**line, "reason": "more than 2048 MB"}) + "\nnonsense\n")
        return None

    node.app = too_large
    federation.run(rejections=str(rejections))
    first = federation.records[0]
    assert (first.sites["scanner-3"].status, first.sites["scanner-3"].reason) == (
        "rejected", "turned away by the gate: more than 2048 MB",
    )  # fmt: skip
    assert first.sites["scanner-1"].status == "ok"
    assert first.seconds < 30


@pytest.fixture
def splitting(prepared: Callable[..., Path]) -> Iterator[Federation]:
    """Split learning, with a quorum of all."""
    with superlink() as link:
        made = Federation(
            link,
            prepared(
                "federation.algorithm=split",
                "federation.min_sites=3",
                "privacy.unit=none",
                "training.batch_size=8",
                "simulation.max_epsilon=50",
            ),
        )
        made.add(*SITES)
        yield made
        assert made.failed == []


@pytest.mark.parametrize(
    "half", [pytest.param(messages.SPLIT_FRONT, marks=pytest.mark.slow), messages.SPLIT_BACK]
)
def test_a_split_round_is_redone_when_a_site_is_killed_that_it_needs(
    splitting: Federation, half: str
) -> None:
    node = splitting.node("scanner-2")

    def restart() -> None:
        threading.Timer(0.2, node.start).start()
        die(node)

    splitting.before = once(half, 2, "scanner-2", restart)
    splitting.run()
    for name in SITES:
        assert statuses(splitting.records, name) == ["ok"] * 3
        # Without noise: the second beginning is on record, and costs nothing.
        began_once = (name, half) == ("scanner-2", messages.SPLIT_FRONT)
        assert splitting.charged(name) == ([1, 2, 3] if began_once else [1, 2, 2, 3])
    assert [event["site"] for event in splitting.events("lost")] == ["scanner-2"]
    begun = [event["round"] for event in splitting.events("round")]
    assert begun == [1, 2, 2, 3]
    # Not at the deadline of the round.
    assert splitting.records[1].seconds < 50


def test_a_split_round_is_redone_once_for_a_site_that_fails(splitting: Federation) -> None:
    def broken(name: str, message: Message) -> None:
        about = (name, message.metadata.message_type, message.metadata.group_id)
        if about == ("scanner-2", messages.SPLIT_BACK, "2"):
            raise ValueError

    splitting.before = broken
    with pytest.raises(RunError, match="scanner-2: failed"):
        splitting.run()
    assert [event["round"] for event in splitting.events("round")] == [1, 2, 2]
    assert {type(error) for error in splitting.failed} == {ValueError}
    splitting.failed.clear()
    splitting.before = lambda site, message: None
    splitting.run()
    assert statuses(splitting.records, "scanner-2") == ["ok"] * 3


# Runs the arm in a child of this process, which imports once; the child dies at the given moment.
# Moments are counted: before and after each call of the server's that changes what is on the disk.
SERVING = """
import json, os, sys
from pathlib import Path
import torch._dynamo
from medfed.client.app import app
import medfed.client.privacy.dp_sgd
from medfed.common.study_file import load_study
from medfed.server.loop import run_study
from medfed.server.records import ArmFolder
from medfed.simulations.grids.local import LocalGrid

run = Path(sys.argv[1])


def path_of(thing):
    return os.readlink(f"/proc/self/fd/{thing}") if isinstance(thing, int) else str(thing)


def count_and_die(at):
    passed = [0]

    def watched(call):
        def watching(first, *rest, **named):
            servers = "/sites/" not in path_of(first)
            for is_after in (False, True):
                if is_after:
                    done = call(first, *rest, **named)
                if servers:
                    passed[0] += 1
                    if passed[0] == at:
                        os._exit(9)
            return done

        return watching

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, watched(getattr(os, name)))
    return passed


def serve(at):
    arm = ArmFolder(run / "arms" / "federated")
    study = load_study(run / "study.toml")
    sites = sorted(arm.folder.glob("sites/*/site.toml"))
    passed = count_and_die(at)
    with LocalGrid(app, dict(enumerate(sites, start=2))) as grid:
        run_study(grid, study, arm.read_plan(), arm)
    return passed[0]


for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writing, str(serve(int(line))).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


class Serving:
    """The coordinator's process of one run, started again and again."""

    def __init__(self, run: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVING, str(run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, at: int = 0) -> int | None:
        """Return how many moments the run had to its end; None if it was killed at `at`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{at}\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        assert code in (0, 9), code
        return int(said) if code == 0 else None

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 97])
def test_a_server_killed_at_any_moment_goes_on_and_no_site_pays_twice(
    prepared: Callable[..., Path], every: int
) -> None:
    first = Serving(prepared("training.rounds=2"))
    with first.process:
        moments = first.run()
        first.end()
    assert moments is not None
    assert moments > 40
    for start in range(1, min(every, moments) + 1, every):
        # One run is killed at one moment after the other, each later than the one before.
        run = prepared("training.rounds=2")
        serving = Serving(run)
        with serving.process:
            at, kills = start, 0
            while serving.run(at) is None:
                kills += 1
                at += every
                check(run, finished=False)
            assert kills
            check(run, finished=True)
            serving.end()


def check(run: Path, *, finished: bool) -> None:
    """Hold the sites' ledgers to the server's records."""
    arm = ArmFolder(run / "arms" / "federated")
    done = [record.round_number for record in arm.read_rounds()] if arm.checkpoint.exists() else []
    for path in arm.folder.glob("sites/*/site.toml"):
        state = load_site(path).state_folder
        entries = Ledger(state).entries() if (state / "ledger.key").exists() else ()
        charged = [entry.spend.round_number for entry in entries]
        assert charged == sorted(set(charged)), "a round was charged twice"
        assert set(done) <= set(charged)
        if finished:
            assert charged == [1, 2]
    if finished:
        assert done == [1, 2]
        assert arm.read_outcome() is not None


def test_fedbuff_waits_for_nobody_and_takes_a_dead_sites_update_once_it_is_back(
    federation: Federation, prepared: Callable[..., Path]
) -> None:
    run = prepared("federation.algorithm=fedbuff", "training.rounds=4")
    buffered = Federation(federation.link, run)
    buffered.add(*SITES)
    node, evaluated = buffered.node("scanner-3"), threading.Event()
    # It has charged and finished round 1, and nothing of it has left.
    buffered.after = once(messages.TRAIN, 1, "scanner-3", lambda: die(node))

    def steer(site: str, message: Message) -> None:
        about = (site, message.metadata.message_type, message.metadata.group_id)
        if about == ("scanner-1", messages.TRAIN, "3"):
            node.start()
        elif about == ("scanner-1", messages.TRAIN, "4"):
            assert evaluated.wait(60)  # so that the last buffer is of the two others
        elif about[:2] == ("scanner-3", messages.EVALUATE):
            evaluated.set()

    buffered.before = steer
    buffered.run(virtual_seconds=None)
    assert buffered.failed == []
    first, second, *later = buffered.records
    for record in (first, second):
        assert sorted(record.order) == ["scanner-1", "scanner-2"]
        assert record.under_way == {"scanner-3": 1}
        assert record.seconds < 30
    [taken] = [r for r in later if r.sites["scanner-3"].asked_in == 1 and "scanner-3" in r.order]
    assert buffered.charged("scanner-3").count(1) == 1
    assert (1, True) in buffered.updates("scanner-3")
    assert taken.sites["scanner-3"].epsilon is not None
