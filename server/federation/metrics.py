"""A federation's status for Prometheus. Every figure comes from files: a restart loses none."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Literal

from medfed.common.metrics_server import Family, exposition
from medfed.server.federation.status_types import FederationStatus

_STATES = ("invited", "enrolled", "approved", "revoked", "left", "unreadable")
_RUN_STATES = ("waiting", "running", "finished", "failed", "stopped", "unreadable")
_LEVELS = ("error", "warning", "note")
Values = Iterable[tuple[Mapping[str, str], float]]


def metrics_text(status: FederationStatus) -> str:
    """Return `status` in Prometheus' text format."""
    return exposition([*_of_federation(status), *_of_sites(status), *_of_runs(status)])


def _family(name: str, meaning: str, values: Values) -> Family:
    kind: Literal["gauge", "counter"] = "counter" if name.endswith("_total") else "gauge"
    return Family(f"medfed_federation_{name}", kind, meaning, values)


def _of_federation(status: FederationStatus) -> Iterator[Family]:
    supervisor, expires = status.supervisor, status.certificate.expires
    yield _family("up", "Whether the supervisor runs.", [({}, supervisor.up)])
    yield _family(
        "process_up",
        "Whether a process of the supervisor runs.",
        [
            ({"process": p.name}, supervisor.up and p.state == "running")
            for p in supervisor.processes
        ],
    )
    yield _family(
        "alarms",
        "What a person should look at, by level; medfed federation status says what it is.",
        [({"level": level}, sum(a.level == level for a in status.alarms)) for level in _LEVELS],
    )
    yield _family(
        "certificate_expiry_timestamp_seconds",
        "When the server certificate expires.",
        [({}, datetime.fromisoformat(expires).timestamp())] if expires else [],
    )
    yield _family(
        "turned_down_requests_last_hour",
        "Requests that the gate turned down in the last hour; of strangers without a site.",
        [({"site": site}, number) for site, number in sorted(status.gate.sites.items())],
    )


def _of_sites(status: FederationStatus) -> Iterator[Family]:
    sites = status.sites
    yield _family(
        "sites",
        "Sites by their state in the registry.",
        [({"state": state}, sum(site.state == state for site in sites)) for state in _STATES],
    )
    yield _family(
        "site_online",
        "Whether an approved site is connected; nothing while that is not known.",
        [
            ({"site": site.name}, bool(site.online))
            for site in sites
            if site.state == "approved" and site.online is not None
        ],
    )
    yield _family(
        "site_epsilon_spent",
        "What the data set of a site has spent, as it last stated.",
        [({"site": site.name}, site.epsilon) for site in sites if site.epsilon is not None],
    )
    yield _family(
        "bytes_total",
        "Bytes of messages in completed rounds; down is to the site.",
        [
            ({"site": site.name, "direction": direction}, number)
            for site in sites
            for direction, number in (("down", site.bytes_down), ("up", site.bytes_up))
        ],
    )
    yield _family(
        "refusals_total",
        "How often a site refused, by the reason that it gave.",
        [
            ({"site": site.name, "reason": reason}, number)
            for site in sites
            for reason, number in sorted(site.refusals.items())
        ],
    )
    yield _family(
        "rejections_total",
        "How often what a site sent was rejected.",
        [({"site": site.name}, site.num_rejected) for site in sites],
    )


def _of_runs(status: FederationStatus) -> Iterator[Family]:
    runs = status.runs
    yield _family(
        "run_round",
        "The round in progress, or the last one.",
        [({"run": run.name}, run.round_number) for run in runs],
    )
    yield _family(
        "run_rounds",
        "Rounds that the study asks for.",
        [({"run": run.name}, run.rounds) for run in runs],
    )
    yield _family(
        "run_state",
        "1 for the state that a run is in, 0 for the others.",
        [
            ({"run": run.name, "state": state}, run.state == state)
            for run in runs
            for state in _RUN_STATES
        ],
    )
    yield _family(
        "run_metric",
        "The main figure of a run, after its latest evaluation.",
        [
            ({"run": run.name, "metric": run.metric}, run.values[-1][1])
            for run in runs
            if run.values
        ],
    )
    yield _family(
        "run_round_seconds",
        "Seconds that a round takes, the median of the latest.",
        [({"run": run.name}, run.round_s) for run in runs if run.round_s is not None],
    )
