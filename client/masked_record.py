"""What this site has given out of masked rounds, written down before it leaves (docs/adr/0010).

A round's secrets are in the memory of a SuperNode, which a kill loses, or shows as it was before an
answer that has left. So what must never be said twice is looked up on the disk: `masked.json` in
the state folder. It holds no secret and nothing about a patient:

    masks     hash of the public key of the masks used last
    vector    hash of the vector that they hid
    revealed  by run, the last round whose sum this site helped to open, and over which sites

One vector leaves under a round's masks: two would tell their difference. And a round's sum is
opened over one set of sites only: updates are the same however often the round is begun, so two
sums would tell the update of the site that only one of them holds. Opening takes more than half of
the sites asked, and each keeps to its first answer.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.files import make_private, write_secret
from medfed.common.secure_sum.context import RoundContext
from medfed.common.secure_sum.masking import Vector

MASKED_FILE = "masked.json"


def note_vector(folder: Path, public_key: bytes, vector: Vector) -> None:
    """Write down that `vector`, before it is masked, leaves under the masks of `public_key`.

    Args:
        folder: The state folder; made if there is none.
        public_key: The site's own, of the round's masks.
        vector: uint32 [D].

    Raises:
        SiteRefusal: Another vector has left under them, or the record cannot be read.
        OSError: It could not be written: the vector must not leave.
    """
    table = _read(folder)
    masks, digest = hashlib.sha256(public_key).hexdigest(), hashlib.sha256(vector.data).hexdigest()
    if table.get("masks") == masks and table.get("vector") != digest:
        raise _refusal("another update has left under these masks. The round must be begun anew.")
    _write(folder, {**table, "masks": masks, "vector": digest})


def note_revealed(folder: Path, context: RoundContext, stayed: Collection[str]) -> None:
    """Write down that this site helps to open a round's sum over the sites that `stayed`.

    Raises:
        SiteRefusal: It has helped to open the sum over other sites, or of a later round of the run;
            or the record cannot be read.
        OSError: It could not be written: no share must leave.
    """
    table = _read(folder)
    revealed: dict[str, list[Any]] = table.get("revealed", {})
    run = hashlib.sha256(json.dumps([context.study, context.run]).encode()).hexdigest()
    now = [context.round_number, sorted(stayed)]
    before = revealed.get(run, now)
    if before[0] > now[0] or (before[0] == now[0] and before[1] != now[1]):
        raise _refusal(
            f"the sum of round {before[0]} may be open, over {', '.join(before[1])}; over other "
            "sites, or for an earlier round, it would tell one site's update. Resume once those "
            "sites are back, or start a new run."
        )
    _write(folder, {**table, "revealed": {**revealed, run: now}})


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MASKED_FILE
    try:
        table = json.loads(path.read_bytes())
        if not isinstance(table, dict) or not isinstance(table.get("revealed", {}), dict):
            raise ValueError("expected a table")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _refusal(
            f"{path} cannot be read ({error}). Run as the site's user; if it is damaged, remove it "
            "once no run with secure aggregation is under way."
        ) from None
    return table


def _write(folder: Path, table: dict[str, Any]) -> None:
    make_private(folder)
    write_secret(folder / MASKED_FILE, json.dumps(table, sort_keys=True).encode() + b"\n")


def _refusal(detail: str) -> SiteRefusal:
    return SiteRefusal(RefusalReason.INTERNAL, f"Secure aggregation: {detail}")
