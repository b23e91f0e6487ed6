"""The fault table, a hospital's side: its processes are killed in the midst of a real deployment.

Each row is a run that must end as if nothing had happened (`faults.Row.finish_whole`): all rounds,
all sites in each of them, and one charge for each release.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment
from faults import ROUNDS, Row, frozen, three_hospitals, until
from forwarder import Forwarder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VICTIM = "scanner-1"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A coordinator that runs, and three hospitals."""
    with three_hospitals(tmp_path_factory.mktemp("faults")) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def network(hospitals: Deployment) -> Iterator[Forwarder]:
    """Between one hospital and the coordinator."""
    with Forwarder(hospitals.port) as forwarder:
        hospitals.redirect(VICTIM, f"127.0.0.1:{forwarder.port}")
        yield forwarder


@pytest.fixture(scope="module")
def federation(hospitals: Deployment, network: Forwarder) -> Deployment:
    """All sites are connected."""
    hospitals.start_sites()
    return hospitals


def test_site_trains_on_when_supernode_is_killed_in_training(federation: Deployment) -> None:
    row = Row(federation, "noisy", "supernode-training")
    before = federation.site_status(VICTIM)
    with row.frozen_in_training(VICTIM, 1):
        federation.kill_pid(before["supernode_pid"])
    row.finish_whole()
    after = federation.site_status(VICTIM)
    assert after["supernode_pid"] not in (before["supernode_pid"], 0)
    assert after["worker_pid"] == before["worker_pid"]  # stayed warm
    # Let in at once: the SuperNode that was killed is signed off by the next one.
    said = (row.state(VICTIM) / "agent" / "logs" / "supernode.log").read_text()
    assert "SuperNode ID" in said
    assert "Failed to activate" not in said


def test_site_sends_the_same_again_when_supernode_is_killed_in_upload(
    federation: Deployment, network: Forwarder
) -> None:
    row = Row(federation, "noisy", "supernode-upload")
    with row.frozen_in_training(VICTIM, 1):
        network.hang(after_bytes=50_000)
    until("the upload has begun", network.stuck.is_set)
    # All of the update is made, a part of it has left.
    assert row.num_answers(VICTIM, "train") == 1
    assert not (row.state(VICTIM) / "replies" / "charging.json").exists()
    assert VICTIM not in row.sites_trained(1)
    federation.kill_pid(federation.site_status(VICTIM)["supernode_pid"])
    network.heal()
    row.finish_whole()
    assert row.num_answers(VICTIM, "train") > ROUNDS  # asked again


def test_site_is_waited_for_when_supernode_is_killed_between_rounds(
    federation: Deployment,
) -> None:
    row = Row(federation, "noisy", "supernode-between")
    until("the ServerApp runs", lambda: bool(federation.pids("flwr-serverapp")))
    [server] = federation.pids("flwr-serverapp")
    row.until("a round is complete", lambda: row.num_rounds() == 1)
    with frozen(server):
        assert row.num_charges(VICTIM) == 1
        federation.kill_pid(federation.site_status(VICTIM)["supernode_pid"])
    row.finish_whole()


def test_next_worker_trains_at_no_further_cost_when_worker_is_killed_in_training(
    federation: Deployment,
) -> None:
    row = Row(federation, "noisy", "worker-training")
    before = federation.site_status(VICTIM)
    with row.frozen_in_training(VICTIM, 1):
        federation.kill_pid(before["worker_pid"])
    row.finish_whole()
    assert federation.site_status(VICTIM)["worker_pid"] not in (before["worker_pid"], 0)


def test_site_goes_on_when_its_supervisor_is_killed_in_training(federation: Deployment) -> None:
    row = Row(federation, "noisy", "agent-training")
    before = federation.site_status(VICTIM)
    with row.frozen_in_training(VICTIM, 1):
        federation.kill(f"site-{VICTIM}")
        # The hospital's processes end with their supervisor: nothing trains on unseen.
        children = [Path(f"/proc/{before[pid]}") for pid in ("supernode_pid", "worker_pid")]
        until("its children end", lambda: not any(child.exists() for child in children))
    federation.start_site(VICTIM)
    row.finish_whole()


def test_ledgers_and_audit_logs_verify_after_all_of_that(federation: Deployment) -> None:
    for folder in federation.sites.values():
        said = federation.medfed("site", "ledger", "verify", folder / "site.toml")
        assert "chain and signatures hold" in said
        assert "error" not in federation.medfed("site", "log", folder / "site.toml").lower()
