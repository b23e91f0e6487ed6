"""Who may join and as whom: names that the coordinator registered, sites that come late."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from link import App, Link, superlink

from medfed.common import messages
from medfed.common.errors import RefusalReason, RunError
from medfed.common.messages import JoinReply, Refusal, SecureReply
from medfed.common.study_file import parse_study
from medfed.server.joining import Joining
from medfed.server.presence import Presence
from medfed.server.records import ArmFolder, RunPlan

PLAN = RunPlan(run="r", min_sites=2, expected_sites=2)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.server.presence._EVERY_S", 0.02)
    monkeypatch.setattr("medfed.server.joining._JOIN_GRACE_S", 0.3)
    monkeypatch.setattr("medfed.server.joining._ASK_AGAIN_S", 0.2)
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def link() -> Iterator[Link]:
    with superlink() as made:
        yield made


def says(content: RecordDict) -> App:
    return lambda message, context: Message(content, reply_to=message)


def joins(name: str, patients: int | None = None) -> App:
    return says(messages.pack_join_reply(JoinReply(site=name, public_num_patients=patients)))


def refuses(name: str, reason: RefusalReason) -> App:
    return says(messages.pack_refusal(Refusal(site=name, reason=reason)))


class Changing:
    """Answers with one app first, then with the next."""

    def __init__(self, *apps: App) -> None:
        self._apps = list(apps)

    def __call__(self, message: Message, context: Context) -> Message:
        app = self._apps.pop(0) if len(self._apps) > 1 else self._apps[0]
        return app(message, context)


@pytest.fixture
def joining(link: Link, tmp_path: Path) -> Callable[..., Joining]:
    def make(plan: RunPlan = PLAN, timeout_s: float = 5.0) -> Joining:
        study = parse_study(
            {
                "study": {"name": "s"},
                "task": {"classes": ["a", "b"]},
                "training": {"local_steps": 5},
                "federation": {"join_timeout_s": timeout_s},
            },
            "study",
        )
        arm = ArmFolder(tmp_path)
        arm.write_plan(plan)
        return Joining(link.grid, study, plan, arm, Presence(link.grid))

    return make


def events(folder: Path, kind: str) -> list[dict[str, str]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def look_until(joining: Joining, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        joining.look(20.0)
        time.sleep(0.02)


def test_sites_join_under_their_registered_names(
    link: Link, joining: Callable[..., Joining], tmp_path: Path
) -> None:
    for name in ("berlin", "paris"):
        link.add(name, joins(name, 40), registered=name)
    found = joining()
    found.wait()
    assert {name: site.node_id for name, site in found.sites.items()} == {
        name: node.node_id for name, node in link.nodes.items()
    }
    assert sorted(event["site"] for event in events(tmp_path, "joined")) == ["berlin", "paris"]


@pytest.mark.parametrize("first", ["impostor", "paris"])
def test_a_node_that_calls_itself_another_is_turned_away_and_the_run_goes_on(
    link: Link, joining: Callable[..., Joining], tmp_path: Path, first: str
) -> None:
    def impostor() -> None:
        link.add("impostor", joins("paris"), registered="rome")

    if first == "impostor":
        impostor()
    link.add("paris", joins("paris"), registered="paris")
    link.add("berlin", joins("berlin"), registered="berlin")
    if first != "impostor":
        impostor()
    found = joining(replace(PLAN, expected_sites=3))
    found.wait()
    assert set(found.sites) == {"berlin", "paris"}
    assert found.sites["paris"].node_id == link.nodes["paris"].node_id
    [event] = events(tmp_path, "refused")
    assert (event["site"], event["reason"]) == (
        "rome",
        "calls itself paris but is registered as rome",
    )


@pytest.mark.parametrize("name", ["../../etc", "a b", "x" * 65, "Erika\nMustermann"])
def test_a_name_that_no_site_can_have_is_not_repeated(
    link: Link, joining: Callable[..., Joining], tmp_path: Path, name: str
) -> None:
    link.add("berlin", joins("berlin"))
    link.add("paris", joins("paris"))
    link.add("strange", joins(name))
    found = joining(replace(PLAN, expected_sites=3))
    found.wait()
    assert set(found.sites) == {"berlin", "paris"}
    assert found.refused == {"unknown": "calls itself what no site can be called"}
    assert name not in (tmp_path / "events.jsonl").read_text()


def test_two_nodes_of_one_name_end_a_run_where_no_name_is_registered(
    link: Link, joining: Callable[..., Joining]
) -> None:
    link.add("one", joins("berlin"))
    link.add("two", joins("berlin"))
    with pytest.raises(RunError, match="Two nodes call themselves berlin"):
        joining().wait()


def test_two_nodes_registered_under_one_name_are_one_site(
    link: Link, joining: Callable[..., Joining]
) -> None:
    link.add("paris", joins("paris"), registered="paris")
    link.add("one", joins("berlin"), registered="berlin")
    link.add("two", joins("berlin"), registered="berlin")
    found = joining(replace(PLAN, expected_sites=3), timeout_s=60)
    began = time.monotonic()
    found.wait()
    assert time.monotonic() - began < 30
    assert set(found.sites) == {"berlin", "paris"}
    assert found.refused == {"berlin": "a second node of that name is connected"}


def test_a_paused_site_is_waited_for_before_the_run_begins_without_it(
    link: Link, joining: Callable[..., Joining], tmp_path: Path
) -> None:
    paused = refuses("paris", RefusalReason.PAUSED)
    link.add("paris", Changing(paused, paused, joins("paris")), registered="paris")
    link.add("berlin", joins("berlin"), registered="berlin")
    found = joining()
    found.wait()
    assert set(found.sites) == {"berlin", "paris"}
    assert found.refused == {}
    # Said once, however often it is asked.
    assert [event["reason"] for event in events(tmp_path, "refused")] == ["paused"]


def test_waiting_for_sites_is_told_with_who_is_there(
    link: Link, joining: Callable[..., Joining], tmp_path: Path
) -> None:
    link.add("berlin", joins("berlin"), registered="berlin")
    link.add("paris", refuses("paris", RefusalReason.PAUSED), registered="paris")
    with pytest.raises(RunError, match=r"at least 2 sites, 1 joined. paris refused \(paused\)"):
        joining(timeout_s=1.5).wait()
    told = [event["reason"] for event in events(tmp_path, "waiting")]
    assert told == ["1 of 2 sites joined; 2 are needed. paris refused (paused)."]


@pytest.mark.parametrize("reason", [RefusalReason.POLICY, RefusalReason.BUDGET])
def test_a_refusal_for_good_ends_the_wait_at_once(
    link: Link, joining: Callable[..., Joining], reason: RefusalReason
) -> None:
    link.add("berlin", joins("berlin"))
    link.add("paris", Changing(refuses("paris", reason), joins("paris")))
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"paris refused \({reason.value}\)"):
        joining(timeout_s=60).wait()
    assert time.monotonic() - began < 30


def test_a_site_that_comes_late_joins_without_anybody_waiting_for_it(
    link: Link, joining: Callable[..., Joining]
) -> None:
    for name in ("berlin", "paris"):
        link.add(name, joins(name), registered=name)
    found = joining()
    found.wait()
    link.add("rome", joins("rome"), registered="rome")
    look_until(found, lambda: "rome" in found.sites)
    # It has joined, and is not asked again.
    for _ in range(20):
        found.look(1.0)
        time.sleep(0.01)
    assert [kind for kind, _ in link.nodes["rome"].handled] == [messages.JOIN]


def test_nobody_else_joins_a_run_whose_sites_are_named(
    link: Link, joining: Callable[..., Joining]
) -> None:
    names = ("berlin", "paris")
    for name in names:
        link.add(name, joins(name))
    found = joining(replace(PLAN, train_sites=names, evaluate_sites=names))
    found.wait()
    rome = link.add("rome", joins("rome"))
    for _ in range(30):
        found.look(1.0)
        time.sleep(0.01)
    assert set(found.sites) == set(names)
    assert rome.handled == []


def test_a_node_that_died_before_it_answered_is_asked_when_it_is_back(
    link: Link, joining: Callable[..., Joining]
) -> None:
    def answer(message: Message, context: Context) -> Message:
        if len(rome.handled) == 1:
            rome.kill()
        return joins("rome")(message, context)

    for name in ("berlin", "paris"):
        link.add(name, joins(name))
    found = joining()
    found.wait()
    rome = link.add("rome", answer, registered="rome")
    look_until(found, lambda: len(rome.handled) == 1)
    rome.start()
    look_until(found, lambda: "rome" in found.sites)
    assert len(rome.handled) == 2


@pytest.mark.parametrize("registered", ["paris", None])
def test_a_site_that_is_back_through_another_node_goes_on_as_itself(
    link: Link, joining: Callable[..., Joining], registered: str | None
) -> None:
    link.add("berlin", joins("berlin"), registered="berlin")
    old = link.add("paris", joins("paris"), registered=registered)
    found = joining()
    found.wait()
    old.kill()
    new = link.add("paris anew", joins("paris"), registered=registered)
    # While the old one counts as connected the new one is turned away, then it takes its place.
    look_until(found, lambda: "paris" in found.refused)
    new.kill()
    time.sleep(0.6)
    new.start()
    look_until(found, lambda: found.sites["paris"].node_id == new.node_id)


def test_a_site_that_paused_is_probed_until_it_goes_on(
    link: Link, joining: Callable[..., Joining]
) -> None:
    paused = refuses("paris", RefusalReason.PAUSED)
    link.add("berlin", joins("berlin"))
    link.add("paris", Changing(joins("paris"), paused, paused, joins("paris")))
    found = joining()
    found.wait()
    found.probe(["paris"])
    assert found.is_probed("paris")
    assert not found.is_probed("berlin")
    look_until(found, lambda: not found.is_probed("paris"))
    assert len(link.nodes["paris"].handled) == 4


def test_an_answer_of_another_kind_is_no_joining(
    link: Link, joining: Callable[..., Joining]
) -> None:
    link.add("berlin", joins("berlin"))
    link.add("paris", joins("paris"))
    link.add("odd", says(messages.pack_secure_reply(SecureReply(site="odd", payload=b"x"))))
    link.add("empty", says(RecordDict()))
    found = joining(replace(PLAN, expected_sites=4), timeout_s=1.5)
    found.wait()
    assert set(found.sites) == {"berlin", "paris"}
