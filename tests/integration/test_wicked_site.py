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
from wicked import Member, Replies, honest_reply, join, light_federation, members, packed
from wicked_replies import ATTACKS, HONEST, WICKED, Bomb

from medfed.common import messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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

    reference: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    script: Script
    marker: Path


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two honest sites, and a coordinator that takes 40 MB a message."""
    folder = tmp_path_factory.mktemp("wicked")
    with light_federation(folder, *HONEST, max_upload_mb=40) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def outcome(federation: Deployment) -> Outcome:
    """A round for each attack, and as many without the wicked site."""
    names = list(ATTACKS)
    study = write_study(federation.folder, "trained", rounds=len(names), every=1000)
    script = Script(federation, names)
    Bomb.marker = str(federation.folder / "executed")
    honest = [Member(federation, site) for site in HONEST]
    with members(*honest):
        reference = rounds_of(federation.run(study, "reference"))
        join(federation, WICKED)
        with members(Member(federation, WICKED, script)):
            rounds = rounds_of(federation.run(study, "attacked", timeout_s=900))
    return Outcome(reference, rounds, script, Path(Bomb.marker))


def rounds_of(arm: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", range(1, len(ATTACKS) + 1), ids=list(ATTACKS))
def test_round_goes_on_as_if_the_wicked_site_were_not_there(number: int, outcome: Outcome) -> None:
    expected = list(ATTACKS.values())[number - 1][1]
    attacked, reference = outcome.rounds[number - 1], outcome.reference[number - 1]
    assert attacked["weights_sha256"] == reference["weights_sha256"]
    assert [attacked["sites"][name]["status"] for name in HONEST] == ["ok", "ok"]
    wicked = attacked["sites"][WICKED]
    assert wicked["status"] == ("failed" if "error" in expected else "rejected"), wicked
    assert expected in wicked["reason"]
    assert len(wicked["reason"]) < 1000
    assert wicked["weight"] == 0
