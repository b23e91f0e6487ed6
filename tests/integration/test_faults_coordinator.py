"""The fault table, the coordinator's side: its processes are killed, and at last everybody's.

Each row is a run that must end as if nothing had happened (`faults.Row.finish_whole`): all rounds,
all sites in each of them, and one charge for each release.
"""

import json
from collections.abc import Iterator

import pytest
from deployment import Deployment
from faults import SITES, Row, three_hospitals, until
from file_watch import FileWatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITE = SITES[1]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three sites that are connected."""
    with three_hospitals(tmp_path_factory.mktemp("faults")) as deployed:
        deployed.start_sites()
        yield deployed


def test_round_is_redone_at_no_further_cost_when_server_app_is_killed_in_it(
    federation: Deployment,
) -> None:
    row = Row(federation, "noisy", "app-round")
    with row.frozen_in_training(SITE, 2):
        row.until("another site's update is there", lambda: bool(row.sites_trained(2)))
        federation.kill_pid(_server_app(federation))
    row.finish_whole()
    assert federation.num_tries(row.name) == 2


def test_run_goes_on_when_server_app_is_killed_while_it_writes_its_checkpoint(
    federation: Deployment,
) -> None:
    row = Row(federation, "exact", "app-write")
    folder = row.arm / "checkpoint"
    folder.mkdir()
    state = folder / "state.json"
    with FileWatch(folder) as watch:
        # Half of the weights; all of them, but no word of it in state.json; all but the record.
        for change, name, known in (
            ("created", "round-00001", ""),
            ("renamed", "round-00001", ""),
            ("renamed", "state.json", "round-00002"),
        ):
            server = _server_app(federation)
            if known:  # not that of the first round
                watch.wait_for("renamed", known)
            watch.wait_for(change, name)
            federation.kill_pid(server)
            until("it is gone", lambda pid=server: pid not in federation.pids("flwr-serverapp"))
            named = json.loads(state.read_text())["weights"] if state.exists() else ""
            assert named.removesuffix(".safetensors") == known
    row.finish_whole()
    assert federation.num_tries(row.name) == 4


def test_round_goes_on_when_superlink_is_killed_in_it(federation: Deployment) -> None:
    row = Row(federation, "noisy", "link-round")
    with row.frozen_in_training(SITE, 2):
        row.until("another site's update is there", lambda: bool(row.sites_trained(2)))
        federation.kill_pid(federation.child("superlink"))
    row.finish_whole()


def test_run_goes_on_when_superlink_is_killed_while_it_writes_its_database(
    federation: Deployment,
) -> None:
    row = Row(federation, "exact", "link-write")
    for round_number in (1, 2):
        row.until_training(SITE, round_number)
        until("the SuperLink is back", lambda: bool(federation.child("superlink")))
        superlink = federation.child("superlink")
        with FileWatch(federation.home / "superlink") as watch:
            watch.wait_for("written", "state.db")
            federation.kill_pid(superlink)
    row.finish_whole()


def test_run_goes_on_when_coordinators_supervisor_is_killed(federation: Deployment) -> None:
    row = Row(federation, "noisy", "supervisor")
    with row.frozen_in_training(SITE, 2):
        federation.kill("coordinator")
    federation.start_coordinator()
    row.finish_whole()


def test_run_goes_on_when_everything_is_killed_at_once(federation: Deployment) -> None:
    row = Row(federation, "exact", "everything")
    with row.frozen_in_training(SITE, 2):
        federation.stop()
    federation.start_coordinator()
    for name in SITES:
        federation.start_site(name)
    row.finish_whole()


def test_ledgers_and_audit_logs_verify_after_all_of_that(federation: Deployment) -> None:
    for folder in federation.sites.values():
        said = federation.medfed("site", "ledger", "verify", folder / "site.toml")
        assert "chain and signatures hold" in said
        assert "error" not in federation.medfed("site", "log", folder / "site.toml").lower()


def _server_app(federation: Deployment) -> int:
    until("the ServerApp runs", lambda: bool(federation.pids("flwr-serverapp")))
    [process] = federation.pids("flwr-serverapp")
    return process
