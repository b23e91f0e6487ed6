"""A site's metrics for Prometheus. No name of a study, run or person is in them."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import get_args

from medfed.client.agent.folder import State
from medfed.client.agent.glance import Glance, glance_reader
from medfed.client.site import SiteConfig
from medfed.common.metrics_server import Family, exposition

_NONE: Mapping[str, str] = {}


def metrics_text(site: SiteConfig) -> str:
    """Return the metrics of `site` as they are now, in Prometheus' text format."""
    return exposition(_families(glance_reader(site).read()))


def _families(glance: Glance) -> Iterator[Family]:
    yield from _of_agent(glance)
    yield from _of_budget(glance)
    answered = [({"kind": kind}, count) for kind, count in sorted(glance.answered.items())]
    yield Family("medfed_site_messages_total", "counter", "Messages answered.", answered)
    refused = [({"reason": why}, count) for why, count in sorted(glance.refused.items())]
    yield Family("medfed_site_refusals_total", "counter", "Messages refused.", refused)
    yield Family(
        "medfed_site_bytes_sent_total",
        "counter",
        "Bytes of answers.",
        [(_NONE, glance.bytes_total)],
    )
    if glance.last_answer is not None:
        yield Family(
            "medfed_site_last_answer_timestamp_seconds",
            "gauge",
            "When the latest answer was given.",
            [(_NONE, datetime.fromisoformat(glance.last_answer.time).timestamp())],
        )
    if glance.authority_expires is not None:
        yield Family(
            "medfed_site_authority_expiry_timestamp_seconds",
            "gauge",
            "When the coordinator's certificate authority expires.",
            [(_NONE, glance.authority_expires.timestamp())],
        )


def _of_agent(glance: Glance) -> Iterator[Family]:
    running = glance.life == "running"
    state = glance.status.state if glance.status is not None and running else "stopped"
    yield Family(
        "medfed_site_up", "gauge", "Whether the site's agent runs.", [(_NONE, float(running))]
    )
    yield Family(
        "medfed_site_state",
        "gauge",
        "1 at the state that the agent is in.",
        [({"state": name}, float(name == state)) for name in get_args(State)],
    )
    yield Family(
        "medfed_site_paused",
        "gauge",
        "Whether the site is paused.",
        [(_NONE, float(glance.paused is not None))],
    )
    if glance.status is not None:
        yield Family(
            "medfed_site_worker_restarts_total",
            "counter",
            "Starts of the worker but for the first.",
            [(_NONE, glance.status.worker_restarts)],
        )


def _of_budget(glance: Glance) -> Iterator[Family]:
    budget = glance.budget
    yield Family(
        "medfed_site_ledger_trusted",
        "gauge",
        "Whether the privacy ledger holds; without it there is no training.",
        [(_NONE, float(not budget.problem))],
    )
    about = {"unit": " and ".join(budget.units), "delta": f"{budget.delta:g}"}
    if not budget.problem:
        yield Family(
            "medfed_site_epsilon_spent",
            "gauge",
            "Epsilon that the data set has spent; +Inf if some releases had no privacy.",
            [(about, budget.spent)],
        )
    yield Family(
        "medfed_site_epsilon_budget",
        "gauge",
        "Epsilon that the policy allows the data set.",
        [(about, budget.limit)],
    )
