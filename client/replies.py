"""The journal of this site's last update: a round that is asked for again costs once.

A SuperNode keeps messages in memory only. If it dies after the charge, the server asks for the same
round again; without this journal fresh noise would make that a second release, charged again. In
the state folder, `replies/`:

    lock                held from the charge until the update is kept: one training at a time
    charging.json       which request is being charged, and the ledger's head before the charge.
                        While it is there, nothing of what that charge paid for has left
    reply.safetensors   the last update; its header says for which request, and what else was in
                        the reply

The order of writing makes every kill safe. `charging.json` is written before the charge, so that a
charge whose training was cut off is known for sure: the ledger's last entry is of that release and
follows that head. It is removed only when `reply.safetensors` is whole, and before anything may
leave; from then on the same request gets the same bits. Whatever is missing or damaged means that
the charge is made again: more is counted than was spent, never less. So leave this folder out of
backups: an old `charging.json` that comes back could vouch for a training that has left since.

Under secure aggregation the update is kept as it was before it was masked, and leaves under other
masks when the round is begun anew. Where all sites add the noise together it is not kept
(`let_go`): with the same noise in two sums over different sites, neither would be as private as
stated.

Nothing is kept where the policy allows seeded noise, since training anew gives the same bits
(docs/adr/0004), and simulations of many sites would pay for it in time and disk.
"""

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medfed.client.releases import Cost
from medfed.common.files import make_private, sync_folder, write_secret
from medfed.common.messages import TRAIN, ModelRequest, TrainReply
from medfed.common.state_dicts import StateDict, digest

log = logging.getLogger(__name__)

REPLIES_FOLDER = "replies"
_LOCK = "lock"
_CHARGING = "charging.json"
_REPLY = "reply.safetensors"


@dataclass(frozen=True)
class KeptReply:
    """An update as it left or was about to.

    Attributes:
        reply: The reply.
        cost: What the update cost.
        withheld: What stayed, and why.
    """

    reply: TrainReply
    cost: Cost
    withheld: Mapping[str, str] = field(default_factory=dict)


def identify(request: ModelRequest, release: str) -> str:
    """Return a digest of everything in a request to train that decides what is released.

    The message's number and the countersignature are no part of it: they differ when the same round
    is asked for again.

    Args:
        request: To train.
        release: `Spend.release`: names study, run, round, weights and, if any, the correction.
    """
    parts: list[object] = [TRAIN, release, request.frozen_sha256, list(request.words)]
    if request.reference:
        parts.append(list(request.reference))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ReplyJournal:
    """The journal as one request sees it; use `opened`."""

    def __init__(self, folder: Path, request: str) -> None:
        self._folder = folder
        self._request = request
        self._charging = folder / _CHARGING
        self._reply = folder / _REPLY

    @classmethod
    @contextmanager
    def opened(cls, state_folder: Path, request: str) -> Iterator[Self]:
        """Hold the journal alone: the same request in two processes would be charged once only.

        Args:
            state_folder: The site's; made if there is none.
            request: What `identify` says of it.
        """
        folder = state_folder / REPLIES_FOLDER
        make_private(folder)
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            journal = cls(folder, request)
            journal._remove_halves()  # of a process that was killed
            yield journal

    def finished(self, site: str) -> KeptReply | None:
        """Return the reply to this very request, if it is kept; it may leave again.

        Args:
            site: The name to reply under.

        Raises:
            OSError: It could not be written down that it leaves.
        """
        kept = _read_reply(self._reply, self._request, site)
        if kept is not None:
            self._remove_charging()  # killed in `keep`: from here on it is not true
        return kept

    @property
    def head_before(self) -> str | None:
        """The ledger's head before this request's charge; None if none was begun, or it left."""
        try:
            table = json.loads(self._charging.read_bytes())
            begun, head = table["request"], table["head"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read (%s): the round is charged again.", _CHARGING, error)
            return None
        return head if begun == self._request and isinstance(head, str) else None

    def intend(self, head: str) -> None:
        """Write down that this request is about to be charged after `head`; forget the last reply.

        Raises:
            OSError: It could not be written: do not charge.
        """
        # First, or a full disk could not be emptied.
        self._reply.unlink(missing_ok=True)
        write_secret(
            self._charging, json.dumps({"request": self._request, "head": head}).encode() + b"\n"
        )

    def keep(self, kept: KeptReply) -> None:
        """Keep the reply to this request. It may leave once this has returned, and not before.

        Raises:
            OSError: It could not be written, on a full disk say. It must not leave; the charge
                counts for when the request comes again.
        """
        content = _pack(kept, self._request)
        try:
            write_secret(self._reply, content)
        except OSError:
            self._remove_halves()
            raise
        self._remove_charging()

    def let_go(self) -> None:
        """Write down that what was charged may leave now, and is not kept.

        Raises:
            OSError: It could not be written: nothing may leave.
        """
        self._remove_charging()

    def _remove_charging(self) -> None:
        if self._charging.exists():
            self._charging.unlink()
            sync_folder(self._folder)

    def _remove_halves(self) -> None:
        for half in self._folder.glob(".*.tmp"):
            half.unlink()


def _pack(kept: KeptReply, request: str) -> bytes:
    reply = kept.reply
    facts = {
        "request": request,
        "names": list(reply.update),  # the file sorts them its own way
        "sha256": digest(reply.update),
        "num_examples": reply.num_examples,
        "loss": reply.loss,
        "epsilon": reply.epsilon,
        "noise": reply.noise,
        "ledger_head": reply.ledger_head,
        "cost": list(kept.cost),
        "withheld": dict(kept.withheld),
    }
    arrays = {name: np.asarray(array, order="C") for name, array in reply.update.items()}
    packed: bytes = save(arrays, {"medfed": json.dumps(facts)})
    return packed


def _read_reply(path: Path, request: str, site: str) -> KeptReply | None:
    """Return the reply to `request`; None if it is another's, or missing, or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["medfed"])
            if facts["request"] != request:
                return None
            update: StateDict = {name: file.get_tensor(name) for name in facts["names"]}
        if digest(update) != facts["sha256"]:
            raise ValueError("its update is not the one that was kept")
        reply = TrainReply(
            site=site,
            update=update,
            num_examples=facts["num_examples"],
            loss=facts["loss"],
            epsilon=facts["epsilon"],
            noise=facts["noise"],
            ledger_head=facts["ledger_head"],
        )
        return KeptReply(reply, Cost(*facts["cost"]), facts["withheld"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        log.warning("The kept reply cannot be read (%s): the round is trained again.", error)
        return None
