"""The fault table, split learning: a hospital's processes are killed in the midst of a step.

What a site trains of a round lies in its SuperNode's memory (ADR 28), so a killed agent forgets the
round, and a killed worker the half step: the site has failed for the round. With a quorum without
it the round is complete, and the site is there again for the next. With a quorum that needs it the
round is redone, to the same bits.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment
from faults import ROUNDS, SITES, Row, frozen, kill_agent, three_hospitals, undisturbed
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.releases import read_releases
from medfed.common import messages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VICTIM = "scanner-1"
OTHERS = tuple(site for site in SITES if site != VICTIM)
STEPS = 3
LOST_AFTER_S = 8.0
HALVES = (messages.SPLIT_FRONT, messages.SPLIT_BACK)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three sites that are connected, and allow activations to leave."""
    with three_hospitals(tmp_path_factory.mktemp("faults")) as deployed:
        for folder in deployed.sites.values():
            file = folder / "site.toml"
            allowed = file.read_text().replace("[policy]\n", "[policy]\nallow_activations = true\n")
            file.write_text(allowed)
        deployed.start_sites()
        yield deployed


def strike(row: Row, round_number: int, process: str) -> None:
    """Kill the victim's agent or worker while it works on a step of a round, not on its first."""
    worker = int(row.federation.site_status(VICTIM)["worker_pid"])
    done = (round_number - 1) * STEPS + 1

    def works_on_a_step() -> bool:
        asked, answered = (
            sum(row.num_events(VICTIM, event, half) for half in HALVES)
            for event in ("asked", "answered")
        )
        return asked > answered and row.num_answers(VICTIM, messages.SPLIT_BACK) >= done

    while True:
        row.until("it works on a step", works_on_a_step)
        with frozen(worker):
            if not works_on_a_step():
                continue  # it has answered in that moment
            if process == "worker":
                row.federation.kill_pid(worker)
                return
            kill_agent(row.federation, VICTIM)
            return


class WithoutVictim(ClientApp):
    """Simulated sites of which one gives no answer in a round."""

    def __init__(self, round_number: int) -> None:
        super().__init__()
        self._group = str(round_number)

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        asked = message.metadata
        is_missing = (site, asked.group_id, asked.message_type) == (
            VICTIM,
            self._group,
            messages.TRAIN,
        )
        return Message(Error(2, "dead"), reply_to=message) if is_missing else client_app(
            message, context
        )  # fmt: skip


def test_round_is_complete_without_a_site_whose_agent_is_killed_in_a_step(
    federation: Deployment,
) -> None:
    row = Row(federation, "split", "agent-lost", rounds=3, min_sites=2, lost_after_s=LOST_AFTER_S)
    strike(row, 2, "agent")
    federation.start_site(VICTIM)
    federation.wait_for_sites()
    records = row.finish()
    statuses = {site: [record.sites[site].status for record in records] for site in SITES}
    assert statuses == {
        VICTIM: ["ok", "lost", "ok"],
        **dict.fromkeys(OTHERS, ["ok"] * 3),
    }
    # Of the others' updates alone, and the site's own in the rounds before and after.
    assert [record.weights_sha256 for record in records] == list(
        undisturbed("split", 3, WithoutVictim(2))
    )
    # Charged for the round of which activations had left, and listed.
    assert [entry.spend.round_number for entry in row.entries(VICTIM)] == [1, 2, 3]
    left = [one for one in read_releases(row.state(VICTIM))[0] if one.run == row.run]
    of_round = [one.kind for one in left if one.round_number == 2]
    assert 1 <= of_round.count("gradient") < STEPS
    assert "update" not in of_round
    assert federation.num_tries(row.name) == 1


@pytest.mark.parametrize("process", ["worker", "agent"])
def test_round_that_needs_the_site_is_redone_when_it_is_killed_in_a_step(
    federation: Deployment, process: str
) -> None:
    name = f"{process}-needed"
    row = Row(federation, "split", name, min_sites=len(SITES), lost_after_s=LOST_AFTER_S)
    strike(row, 2, process)
    if process == "agent":
        federation.start_site(VICTIM)
        federation.wait_for_sites()
    row.finish_whole()
    assert federation.num_tries(name) == 1
    # All sites went through the round twice.
    for site in SITES:
        assert row.num_answers(site, messages.SPLIT_BACK) > ROUNDS * STEPS


def test_ledgers_and_audit_logs_verify_after_all_of_that(federation: Deployment) -> None:
    for folder in federation.sites.values():
        said = federation.medfed("site", "ledger", "verify", folder / "site.toml")
        assert "chain and signatures hold" in said
        assert "error" not in federation.medfed("site", "log", folder / "site.toml").lower()
