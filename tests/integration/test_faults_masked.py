"""The fault table, secure aggregation: a hospital's processes are killed in the midst of training.

A site's keys and masks of a round lie in its SuperNode's memory, which dies with its agent: the
site says that it cannot go on, and the round is complete without it, or, with a quorum that needs
it, begun anew. A killed worker takes nothing along: the round goes on. No row waits for its
round's deadline of an hour, and with real noise no site pays for a round twice.
"""

import json
from collections.abc import Iterator

import pytest
from deployment import Deployment
from faults import SITES, Row, kill_agent, three_hospitals

from medfed.client.releases import read_releases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VICTIM = "scanner-1"
OTHERS = tuple(site for site in SITES if site != VICTIM)
LOST_AFTER_S = 8.0


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three sites that are connected."""
    with three_hospitals(tmp_path_factory.mktemp("faults")) as deployed:
        deployed.start_sites()
        yield deployed


def begun(row: Row) -> list[int]:
    events = map(json.loads, (row.arm / "events.jsonl").read_text().splitlines())
    return [event["round"] for event in events if event["event"] == "round"]


def sent_again(row: Row, site: str) -> list[int]:
    return [
        one.round_number
        for one in read_releases(row.state(site))[0]
        if one.run == row.run and any("sent again" in part.cost for part in one.quantities)
    ]


def test_round_goes_on_when_a_worker_is_killed_in_training(federation: Deployment) -> None:
    row = Row(federation, "masked", "worker", min_sites=len(SITES), lost_after_s=LOST_AFTER_S)
    worker = federation.site_status(VICTIM)["worker_pid"]
    with row.frozen_in_training(VICTIM, 2):
        federation.kill_pid(worker)
    row.finish_whole()
    assert begun(row) == [1, 2]
    assert federation.num_tries(row.name) == 1


def test_round_that_needs_the_site_is_begun_anew_when_its_agent_is_killed_in_training(
    federation: Deployment,
) -> None:
    row = Row(federation, "masked", "needed", min_sites=len(SITES), lost_after_s=LOST_AFTER_S)
    with row.frozen_in_training(VICTIM, 2):
        kill_agent(federation, VICTIM)
    federation.start_site(VICTIM)
    federation.wait_for_sites()
    row.finish_whole()
    assert begun(row) == [1, 2, 2]
    for site in OTHERS:
        assert sent_again(row, site) == [2]
    assert federation.num_tries(row.name) == 1


def test_round_is_complete_without_a_site_whose_agent_is_killed_in_training(
    federation: Deployment,
) -> None:
    row = Row(federation, "masked", "lost", rounds=3, min_sites=2, lost_after_s=LOST_AFTER_S)
    with row.frozen_in_training(VICTIM, 2):
        kill_agent(federation, VICTIM)
    row.until("the round is complete without it", lambda: row.num_rounds() == 2)
    federation.start_site(VICTIM)
    federation.wait_for_sites()
    records = row.finish()
    assert begun(row) == [1, 2, 3]
    statuses = {site: [record.sites[site].status for record in records] for site in SITES}
    # It may be back a moment after the last round has begun.
    assert statuses[VICTIM][:2] == ["ok", "lost"]
    assert statuses[VICTIM][2] in ("ok", "away")
    assert all(statuses[site] == ["ok"] * 3 for site in OTHERS)
    # A SuperLink notices a dead node within a minute, and then it is waited for a little.
    assert records[1].seconds < 180
    assert federation.num_tries(row.name) == 1


def test_ledgers_and_audit_logs_verify_after_all_of_that(federation: Deployment) -> None:
    for folder in federation.sites.values():
        said = federation.medfed("site", "ledger", "verify", folder / "site.toml")
        assert "chain and signatures hold" in said
        assert "error" not in federation.medfed("site", "log", folder / "site.toml").lower()
