"""A member of the federation that sends what it likes, on the real wire: the others' round goes on.

One site of three is wicked, each round in another way. The other two are honest; the model after
each round must be the very one of a run in which the wicked site does not take part.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from attacks import memory_mb, write_study
from deployment import Deployment
from flwr.app import Message
from wicked import (
    Member,
    Replies,
    honest_digests,
    honest_reply,
    join,
    light_federation,
    members,
    packed,
)
from wicked_replies import ATTACKS, HONEST, WICKED, Bomb

from medfed.common import messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIMIT_MB = 40


@dataclass
class Script:
    """Answers training with one attack a round, and all else honestly.

    Attributes:
        memory_mb: The most that the ServerApp ever took, by round.
    """

    deployed: Deployment
    names: list[str]
    memory_mb: dict[int, float] = field(default_factory=dict)

    def __call__(self, asked: Message) -> Replies:
        if asked.metadata.message_type != messages.TRAIN:
            return [packed(honest_reply(WICKED, asked), asked)]
        number = int(asked.metadata.group_id)
        for pid in self.deployed.pids("flwr-serverapp"):
            self.memory_mb[number] = memory_mb(pid)
        return ATTACKS[self.names[number - 1]][0](asked)


@dataclass
class Outcome:
    """What the runs without and with the wicked site left."""

    undisturbed: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    script: Script
    marker: Path


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two honest sites, and a coordinator that takes 40 MB a message."""
    folder = tmp_path_factory.mktemp("wicked")
    with light_federation(folder, *HONEST, max_upload_mb=LIMIT_MB) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def outcome(federation: Deployment) -> Outcome:
    """A round for each attack, and some without the wicked site."""
    names = list(ATTACKS)
    study = write_study(federation.folder, "trained", rounds=len(names), every=1000)
    script = Script(federation, names)
    Bomb.marker = str(federation.folder / "executed")
    honest = [Member(federation, site) for site in HONEST]
    with members(*honest):
        short = write_study(federation.folder, "undisturbed", rounds=3, every=1000)
        undisturbed = rounds_of(federation.run(short, "undisturbed"))
        join(federation, WICKED)
        with members(Member(federation, WICKED, script)):
            rounds = rounds_of(federation.run(study, "attacked", timeout_s=900))
    return Outcome(undisturbed, rounds, script, Path(Bomb.marker))


def rounds_of(arm: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]


def test_honest_rounds_are_what_they_are_worked_out_to_be(
    federation: Deployment, outcome: Outcome
) -> None:
    study = federation.folder / "undisturbed.toml"
    found = [record["weights_sha256"] for record in outcome.undisturbed]
    assert found == honest_digests(study, len(found), HONEST)


@pytest.mark.parametrize("number", range(1, len(ATTACKS) + 1), ids=list(ATTACKS))
def test_round_goes_on_as_if_the_wicked_site_were_not_there(
    number: int, federation: Deployment, outcome: Outcome
) -> None:
    expected = list(ATTACKS.values())[number - 1][1]
    record = outcome.rounds[number - 1]
    undisturbed = honest_digests(federation.folder / "trained.toml", number, HONEST)
    assert record["weights_sha256"] == undisturbed[-1]
    assert [record["sites"][name]["status"] for name in HONEST] == ["ok", "ok"]
    wicked = record["sites"][WICKED]
    assert wicked["status"] == ("failed" if expected == "error 0" else "rejected"), wicked
    assert expected in wicked["reason"]
    assert len(wicked["reason"]) < 1000
    assert wicked["weight"] == 0


def test_nothing_was_unpickled_and_nobody_died(federation: Deployment, outcome: Outcome) -> None:
    assert not outcome.marker.exists()
    queued = json.loads((federation.home / "runs" / "attacked" / "queue.json").read_text())
    assert (queued["state"], len(queued["flower_runs"])) == ("finished", 1)
    table = json.loads((federation.home / "supervisor.json").read_text())
    assert [child["restarts"] for child in table["processes"].values()] == [0, 0]


def test_memory_stays_within_a_few_messages(outcome: Outcome) -> None:
    first, most = outcome.script.memory_mb[1], max(outcome.script.memory_mb.values())
    assert most < first + 8 * LIMIT_MB
