"""Before the first round: what each site says of its training data, and what follows from it.

Sites answer as far as their own policies let them. What they said is written to `statistics.json`,
one record a site, and is asked for once a run. With data.harmonise the reference of grey levels is
made from it here; it travels with every message from then on, and a resumed run keeps it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from medfed.common import messages
from medfed.common.errors import MessageError, RunError, UpdateError
from medfed.common.files import read_json, write_json
from medfed.common.harmonisation import is_reference, quantiles, reference_of
from medfed.common.messages import Refusal, StatisticsReply, StatisticsRequest
from medfed.common.statistics import Values, to_lists
from medfed.common.study import StudyConfig
from medfed.server.countersigning import Countersigner, screen_head
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.presence import Presence
from medfed.server.records import STATISTICS_FILE, ArmFolder, RunPlan
from medfed.server.screening import screen_statistics
from medfed.server.watch import Watch


def ask_for_statistics(
    grid: Grid,
    study: StudyConfig,
    plan: RunPlan,
    arm: ArmFolder,
    sites: Sequence[Participant],
    countersigner: Countersigner,
) -> tuple[float, ...]:
    """Have the sites describe their training data, if the study asks for it.

    Args:
        grid: Reaches the sites.
        study: Asks or does not.
        plan: Names the run and its quorum.
        arm: Its folder.
        sites: Those that train or evaluate.
        countersigner: Signs the ledger heads of sites that were charged.

    Returns:
        With data.harmonise the reference, channel after channel; else nothing.

    Raises:
        RunError: With data.harmonise, too few sites released a histogram.
    """
    if not study.statistics.collect:
        return ()
    path = arm.folder / STATISTICS_FILE
    if path.exists():
        return reference_of_run(arm.folder, study)
    heads: dict[str, str] = {}
    records, said = _ask(grid, study, plan, sites, heads)
    countersigner.sign_round(0, heads)
    reference = _reference(said, records, study, plan)
    table = {"sites": records, "reference": [*map(list, reference)]}
    write_json(path, table)
    arm.emit("statistics", sites=len(said), asked=len(sites))
    return tuple(np.array(reference).reshape(-1).tolist())


def read_statistics(path: Path) -> dict[str, Any]:
    """Return an arm's `statistics.json`.

    Raises:
        RunError: Missing or damaged.
    """
    table = read_json(path)
    if not isinstance(table.get("sites"), dict) or not isinstance(table.get("reference"), list):
        raise RunError(f"{path} is damaged: expected sites and a reference. Start a new run.")
    return table


def reference_of_run(folder: Path, study: StudyConfig) -> tuple[float, ...]:
    """Return the reference in an arm's folder, channel after channel; nothing without harmonise.

    Raises:
        RunError: Missing or damaged.
    """
    if study.data.harmonise == "none":
        return ()
    path = folder / STATISTICS_FILE
    found = read_statistics(path)["reference"]
    try:
        reference = np.array(found, dtype=np.float64)
    except (TypeError, ValueError):
        reference = np.zeros(0)
    if reference.ndim != 2 or not is_reference(reference, study.data.total_channels):
        raise RunError(f"{path} is damaged: its reference is none. Start a new run.")
    return tuple(reference.reshape(-1).tolist())


def _reference(
    said: Mapping[str, Values],
    records: Mapping[str, Mapping[str, Any]],
    study: StudyConfig,
    plan: RunPlan,
) -> list[list[float]]:
    """Return the mean quantile function of each channel; every site counts once."""
    if study.data.harmonise == "none":
        return []
    reference = []
    for channel in range(study.data.total_channels):
        # In order of name: addition of floats is not associative.
        found = [quantiles(said[name]["intensities"][channel]) for name in sorted(said)]
        known = [function for function in found if function is not None]
        if len(known) < plan.min_sites:
            answers = ", ".join(
                f"{name}: {facts.get('reason') or facts['status']}"
                for name, facts in sorted(records.items())
            )
            raise RunError(
                f"Expected histograms of grey levels from at least {plan.min_sites} sites for "
                f"data.harmonise, got {len(known)} ({answers}). Ask for what the sites' policies "
                "let out (statistics.noise_multiplier, min_count), or leave images as they are."
            )
        reference.append(reference_of(known).tolist())
    return reference


def _ask(
    grid: Grid,
    study: StudyConfig,
    plan: RunPlan,
    sites: Sequence[Participant],
    heads: dict[str, str],
) -> tuple[dict[str, dict[str, Any]], dict[str, Values]]:
    """Ask every site; return what is put on record of each, and the values of those that said any.

    `heads` takes the heads of their ledgers.
    """
    content = messages.pack_statistics_request(StatisticsRequest(study=study, run=plan.run))
    timeout_s = study.federation.round_timeout_s
    by_node = {site.node_id: site.name for site in sites}
    outgoing = [
        Message(content=content, dst_node_id=node, message_type=messages.STATISTICS, ttl=timeout_s)
        for node in by_node
    ]
    records: dict[str, dict[str, Any]] = {}
    said: dict[str, Values] = {}
    watch = Watch(Presence(grid), study.federation.lost_after_s, lambda node: 0.0)
    # Asked again, a site says the same and is charged no second time.
    exchange = Exchange(grid, watch, asks_again=True)
    for message in exchange.replies(outgoing, timeout_s, lambda: len(said) >= plan.min_sites):
        site = by_node[message.metadata.src_node_id]
        facts: dict[str, Any] = {"bytes": messages.num_bytes(message.content)}
        try:
            reply = messages.unpack_reply(message.content)
            if reply.site != site:
                raise MessageError(f"the site that joined as {site} calls itself another name")
            if isinstance(reply, StatisticsReply):
                heads[site] = screen_head(reply.ledger_head)
                said[site] = screen_statistics(reply, study)
                facts |= _facts(reply, said[site])
            elif isinstance(reply, Refusal):
                facts |= {"status": "refused", "reason": reply.reason.value}
            else:
                facts |= {"status": "rejected", "reason": type(reply).__name__}
        except (MessageError, UpdateError) as error:
            facts |= {"status": "rejected", "reason": str(error)}
        records[site] = facts
    for node, reason in exchange.failures.items():
        records[by_node[node]] = {"status": "failed", "reason": reason}
    return records, said


def _facts(reply: StatisticsReply, values: Values) -> dict[str, Any]:
    return {
        "status": "ok",
        "noise": reply.noise,
        "min_count": reply.min_count,
        "epsilon": reply.epsilon,
        "values": to_lists(values),
    }
