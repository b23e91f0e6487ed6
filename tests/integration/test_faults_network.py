"""The fault table, what is between: a network that is cut, a late site, a clock that is off.

The rows end as if nothing had happened (`faults.Row.finish_whole`), but for the round that a late
site misses: that is on record.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import network_namespace
import pytest
import skewed_clock
from deployment import Deployment
from faults import SITES, Row, three_hospitals
from forwarder import Forwarder
from skewed_clock import SkewedClock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VICTIM = "scanner-1"
_OUTAGE_S = 6.0
_DEADLINE_S = 35.0


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A coordinator that runs, and three hospitals, of which one is not started."""
    folder = tmp_path_factory.mktemp("faults")
    with three_hospitals(folder, network_namespace.OURS) as deployed:
        for name in SITES:
            if name != VICTIM:
                deployed.start_site(name)
        yield deployed


@contextlib.contextmanager
def victim(
    hospitals: Deployment,
    address: str = "",
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Deployment]:
    """The third site is started in this way for the time of the block, and all are connected."""
    hospitals.redirect(VICTIM, address or f"127.0.0.1:{hospitals.port}")
    hospitals.start_site(VICTIM, prefix=prefix, environment=environment)
    try:
        hospitals.wait_for_sites()
        yield hospitals
    finally:
        hospitals.medfed("site", "stop", hospitals.sites[VICTIM] / "site.toml")
        hospitals.processes[f"site-{VICTIM}"].wait(60)


@pytest.mark.skipif(bool(network_namespace.why_not()), reason=network_namespace.why_not())
def test_site_is_waited_for_when_its_cable_is_pulled_for_minutes(hospitals: Deployment) -> None:
    address = f"{network_namespace.OURS}:{hospitals.port}"
    with (
        network_namespace.cable() as cable,
        victim(hospitals, address, cable.prefix) as federation,
    ):
        row = Row(federation, "noisy", "cable")
        with row.frozen_in_training(VICTIM, 1):
            cable.pull()
        row.until("it has trained", lambda: row.num_answers(VICTIM, "train") == 1)
        # Nobody is told: both sides notice by themselves.
        federation.wait_for("the coordinator notices", lambda: not federation.is_online(VICTIM))
        federation.wait_for(
            "the site notices", lambda: federation.site_status(VICTIM)["state"] == "connecting"
        )
        assert "reach" in federation.site_status(VICTIM)["reason"]
        assert VICTIM not in row.sites_trained(1)
        cable.plug()
        row.finish_whole()


def test_round_goes_on_when_connections_break_or_hang_for_a_while(hospitals: Deployment) -> None:
    with (
        Forwarder(hospitals.port) as network,
        victim(hospitals, f"127.0.0.1:{network.port}") as federation,
    ):
        row = Row(federation, "exact", "outage")
        for round_number, fault in ((1, network.cut), (2, network.hang)):
            with row.frozen_in_training(VICTIM, round_number):
                fault()
            row.until(
                "it has trained", lambda n=round_number: row.num_answers(VICTIM, "train") == n
            )
            time.sleep(_OUTAGE_S)
            network.heal()
        row.finish_whole()


def test_round_completes_without_a_site_that_answers_after_the_deadline(
    hospitals: Deployment,
) -> None:
    with victim(hospitals) as federation:
        row = Row(federation, "noisy", "late", min_sites=2, round_timeout_s=_DEADLINE_S)
        with row.frozen_in_training(VICTIM, 1):
            lines = (row.arm / "events.jsonl").read_text().splitlines()
            [asked] = [event for event in map(json.loads, lines) if event["event"] == "round"]
            deadline = datetime.fromisoformat(asked["time"]).timestamp() + _DEADLINE_S
            while time.time() < deadline + 2:
                time.sleep(0.5)
        records = row.finish()
    assert [record.sites[VICTIM].status for record in records] == ["late", "ok"]
    for site in set(SITES) - {VICTIM}:
        assert [record.sites[site].status for record in records] == ["ok", "ok"]
    assert not records[0].sites[VICTIM].weight
    # What was made for the first round was paid for, though it came to nothing.
    assert [entry.spend.round_number for entry in row.entries(VICTIM)] == [1, 2]


needs_clock = pytest.mark.skipif(bool(skewed_clock.why_not()), reason=skewed_clock.why_not())


@needs_clock
def test_site_takes_part_when_its_clock_is_off_by_minutes(
    hospitals: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clock = SkewedClock(tmp_path_factory.mktemp("clock") / "skew")
    clock.set_ahead(-240)
    with victim(hospitals, environment=clock.environment) as federation:
        row = Row(federation, "exact", "clock-minutes")
        row.until_training(VICTIM, 1)
        # Flower takes what is signed up to five seconds ahead of its own clock.
        clock.set_ahead(2)
        row.until_training(VICTIM, 2)
        clock.set_ahead(-120)
        row.finish_whole()


@needs_clock
@pytest.mark.parametrize("ahead_s", [1800, -1800], ids=["ahead", "behind"])
def test_site_says_that_its_clock_is_wrong_and_goes_on_once_it_is_set(
    ahead_s: int, hospitals: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clock = SkewedClock(tmp_path_factory.mktemp("clock") / "skew")
    with victim(hospitals, environment=clock.environment) as federation:
        row = Row(federation, "noisy", f"clock-{'ahead' if ahead_s > 0 else 'behind'}")
        with row.frozen_in_training(VICTIM, 1):
            clock.set_ahead(ahead_s)
        federation.wait_for(
            "the site says why",
            lambda: "clock" in federation.site_status(VICTIM)["reason"],
        )
        file = federation.sites[VICTIM] / "site.toml"
        shown = federation.medfed("site", "status", file, environment=clock.environment)
        assert "not connected" in shown
        assert "the clock is" in shown
        assert "timedatectl" in federation.site_status(VICTIM)["reason"]
        clock.set_ahead(0)
        row.finish_whole()
        turned_away = (federation.home / "superlink" / "rejections.jsonl").read_text()
        assert "the site's clock differs" in turned_away


def test_ledgers_and_audit_logs_verify_after_all_of_that(hospitals: Deployment) -> None:
    for folder in hospitals.sites.values():
        said = hospitals.medfed("site", "ledger", "verify", folder / "site.toml")
        assert "chain and signatures hold" in said
        assert "error" not in hospitals.medfed("site", "log", folder / "site.toml").lower()
