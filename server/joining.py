"""Before the first round: who is there and takes part."""

import logging
import time

from flwr.app import Message
from flwr.serverapp import Grid

from medfed.common import messages
from medfed.common.errors import MessageError, RunError
from medfed.common.messages import JoinReply, JoinRequest, Refusal
from medfed.common.study import StudyConfig
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.records import ArmFolder, RunPlan

log = logging.getLogger(__name__)

_JOIN_GRACE_S = 5.0


def join_sites(
    grid: Grid, study: StudyConfig, plan: RunPlan, arm: ArmFolder
) -> dict[str, Participant]:
    """Ask every node who it is, until the expected sites have answered or time is up.

    Nodes are asked as they appear, and none is waited for while others are missing: a SuperNode
    that was killed counts as online for about a minute, and would never answer.

    Raises:
        RunError: Fewer sites than the quorum, or two nodes of one name.
    """
    deadline = time.monotonic() + study.federation.join_timeout_s
    joined: dict[str, Participant] = {}
    refused: dict[str, str] = {}
    asked: set[int] = set()
    exchange = Exchange(grid)
    while time.monotonic() < deadline:
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked.update(new)
        exchange.push(_join_messages(study, plan, new, deadline - time.monotonic()))
        for message in exchange.pull():
            _note_answer(message, joined, refused, arm)
        silent = len(exchange.failures)
        if len(joined) + len(refused) + silent >= plan.expected_sites:
            # Whoever else is online has a moment to answer too.
            deadline = min(deadline, time.monotonic() + _JOIN_GRACE_S)
            if not exchange.num_waiting:
                break
        exchange.wait()
    if len(joined) < plan.min_sites:
        answers = "".join(f" {name} refused ({why})." for name, why in sorted(refused.items()))
        answers += "".join(f" One site gave {why}." for why in exchange.failures.values())
        raise RunError(
            f"Expected at least {plan.min_sites} sites, {len(joined)} joined.{answers} "
            "Lower federation.min_sites, raise federation.join_timeout_s, or see the sites' logs."
        )
    return joined


def _join_messages(
    study: StudyConfig, plan: RunPlan, nodes: list[int], timeout_s: float
) -> list[Message]:
    content = messages.pack_join_request(JoinRequest(study=study, run=plan.run))
    return [
        Message(
            content=content, dst_node_id=node, message_type=messages.JOIN, ttl=max(timeout_s, 1.0)
        )
        for node in nodes
    ]


def _note_answer(
    message: Message,
    joined: dict[str, Participant],
    refused: dict[str, str],
    arm: ArmFolder,
) -> None:
    """Write down who joined or refused.

    Raises:
        RunError: Two nodes have one name.
    """
    try:
        reply = messages.unpack_reply(message.content)
    except MessageError as error:
        log.warning("A node's answer to joining was not understood: %s", error)
        return
    if isinstance(reply, Refusal):
        refused[reply.site] = reply.reason.value
        arm.emit("refused", site=reply.site, reason=reply.reason.value)
    elif isinstance(reply, JoinReply):
        if reply.site in joined:
            raise RunError(f"Two nodes call themselves {reply.site}. Give each site its own name.")
        node = message.metadata.src_node_id
        joined[reply.site] = Participant(reply.site, node, reply.public_num_patients)
        arm.emit("joined", site=reply.site)
