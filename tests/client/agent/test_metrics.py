"""What a site's status and metrics say, from its files alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from medfed.client.agent.folder import AgentFolder, Status
from medfed.client.agent.glance import GlanceReader
from medfed.client.agent.metrics import metrics_text
from medfed.client.audit_log import AuditLog
from medfed.client.site import SiteConfig, load_site
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.ledger import Ledger, Spend

sys.path.insert(0, str(Path(__file__).parent))

from trial_hospital import make_site, make_store

SPEND = Spend(
    release="r",
    study="s",
    run="run",
    round_number=1,
    unit="patient",
    images_per_patient=1,
    noise_multiplier=1.5,
    sample_rate=0.1,
    steps=7,
    max_grad_norm=1.0,
    noise="secure",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def site(tmp_path: Path, store: Path) -> SiteConfig:
    return load_site(make_site(tmp_path, store, max_epsilon=3.0))


def stamp(ago_s: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(timespec="seconds")


def say(site: SiteConfig, **changes: object) -> None:
    folder = AgentFolder(site)
    folder.make()
    status = Status(pid=os.getpid(), state="waiting", since=stamp(), heartbeat=stamp())
    folder.write_status(replace(status, **changes))  # type: ignore[arg-type]


def values(text: str) -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_site_that_never_ran_is_down_and_has_spent_nothing(site: SiteConfig) -> None:
    glance = GlanceReader(site).read()
    assert (glance.life, glance.status, glance.paused) == ("never", None, None)
    assert (glance.budget.spent, glance.budget.left) == (0.0, 3.0)
    found = values(metrics_text(site))
    assert found["medfed_site_up"] == 0
    assert found['medfed_site_epsilon_budget{unit="patient",delta="1e-05"}'] == 3


def test_counts_follow_the_audit_log(site: SiteConfig) -> None:
    audit = AuditLog(site.state_folder)
    for number in (1, 2):
        audit.write("answered", kind="train", round_number=number, bytes=1000, epsilon=1.0)
    audit.write("answered", kind="join", bytes=10)
    audit.write("bundle_refused", sha256="ab" * 32)
    audit.write("refused", kind="train", reason="policy")
    found = values(metrics_text(site))
    assert found['medfed_site_messages_total{kind="train"}'] == 2
    assert found['medfed_site_messages_total{kind="join"}'] == 1
    assert found['medfed_site_refusals_total{reason="policy"}'] == 1
    assert found["medfed_site_bytes_sent_total"] == 2010
    last = datetime.fromisoformat(audit.entries()[3].time).timestamp()
    assert found["medfed_site_last_answer_timestamp_seconds"] == last
    # The next look adds what is new, and only that.
    audit.write("answered", kind="train", round_number=3, bytes=1)
    assert values(metrics_text(site))["medfed_site_bytes_sent_total"] == 2011


def test_bytes_of_other_days_are_not_of_today(site: SiteConfig) -> None:
    audit = AuditLog(site.state_folder)
    audit.write("answered", kind="train", bytes=1000)
    [_, entry] = audit.entries()
    reader = GlanceReader(site)
    reader._count(replace(entry, time="2020-01-01T12:00:00.000+00:00"))
    glance = reader.read()
    assert (glance.bytes_today, glance.bytes_total) == (1000, 2000)


def test_epsilon_is_the_ledgers_and_follows_it(site: SiteConfig) -> None:
    reader = GlanceReader(site)
    assert reader.read().budget.spent == 0
    for steps in (7, 14):
        with Ledger(site.state_folder).locked() as ledger:
            ledger.append(SPEND)
        expected = epsilon([GaussianEvent(1.5, 0.1, steps)], 1e-5)
        assert reader.read().budget.spent == expected
        name = 'medfed_site_epsilon_spent{unit="patient",delta="1e-05"}'
        assert values(metrics_text(site))[name] == expected
    with Ledger(site.state_folder).locked() as ledger:
        ledger.append(replace(SPEND, unit="none", noise="none", noise_multiplier=0.0))
    assert "} Inf\n" in metrics_text(site)
    assert reader.read().budget.left == 0


def test_ledger_that_cannot_be_trusted_has_no_epsilon(site: SiteConfig) -> None:
    with Ledger(site.state_folder).locked() as ledger:
        ledger.append(SPEND)
    path = site.state_folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps": 7', b'"steps": 1'))
    found = values(metrics_text(site))
    assert found["medfed_site_ledger_trusted"] == 0
    assert not any(name.startswith("medfed_site_epsilon_spent") for name in found)
    assert "cannot be trusted" in GlanceReader(site).read().budget.problem


def test_state_is_that_of_a_living_agent(site: SiteConfig) -> None:
    reader = GlanceReader(site)
    say(site, state="working", worker_restarts=2)
    assert reader.read().life == "running"
    found = values(metrics_text(site))
    assert found["medfed_site_up"] == 1
    assert found['medfed_site_state{state="working"}'] == 1
    assert sum(v for n, v in found.items() if n.startswith("medfed_site_state")) == 1
    assert found["medfed_site_worker_restarts_total"] == 2
    say(site, heartbeat=stamp(300))
    assert reader.read().life == "silent"
    say(site, state="stopped")
    assert reader.read().life == "stopped"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    say(site, pid=ended.pid)
    assert reader.read().life == "ended"
    assert values(metrics_text(site))["medfed_site_up"] == 0


def test_pause_is_seen_with_its_reason(site: SiteConfig) -> None:
    reader = GlanceReader(site)
    AgentFolder(site).pause("new GPU")
    assert reader.read().paused == "new GPU"
    assert values(metrics_text(site))["medfed_site_paused"] == 1
    AgentFolder(site).resume()
    assert reader.read().paused is None


def test_half_written_or_foreign_status_is_none(site: SiteConfig) -> None:
    say(site)
    file = AgentFolder(site).status_file
    for content in ("", '{"pid": 1', "[]", json.dumps({"pid": 1, "surprise": 2})):
        file.write_text(content)
        assert GlanceReader(site).read().life == "never"


def test_audit_log_that_cannot_be_read_is_said_so(site: SiteConfig) -> None:
    log = AuditLog(site.state_folder)
    log.path.unlink()
    log.path.mkdir()
    assert GlanceReader(site).read().audit_problem
    assert values(metrics_text(site))["medfed_site_up"] == 0
