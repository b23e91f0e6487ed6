"""The release list: every quantity that left this site, its size and what it cost in privacy.

`releases.jsonl` in the state folder: one JSON line a reply, written through to the disk before the
reply leaves. It is made from the packed reply itself, so that nothing leaves that is not listed: a
quantity that `_COSTS` does not know stops its reply. Values are not in it, names of them are; nor
is anything about a patient. It stays at the site, as the ledger does.

A line that a power cut tore is skipped on reading, and counted: its reply did not leave.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from medfed.common.errors import ReleaseError
from medfed.common.files import sync_folder, to_disk

RELEASES_FILE = "releases.jsonl"

Protection = Literal["public", "dp", "none"]
"""public: nobody's data is in it. dp: covered by differential privacy, charged to the ledger. none:
exact figures of this site's data."""


class Cost(NamedTuple):
    """What a quantity costs in privacy: by kind, and in words."""

    protection: Protection
    text: str


@dataclass(frozen=True)
class Quantity:
    """One thing that left.

    Attributes:
        name: As the message names it; `update` stands for all of its arrays.
        num_bytes: Of its name and value.
        protection: What covers it.
        cost: The same in words.
    """

    name: str
    num_bytes: int
    protection: Protection
    cost: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """One reply.

    Attributes:
        time: UTC.
        run: The run's identifier; empty if the request could not be read.
        study: The study's name.
        round_number: 1-based; 0 before the first round.
        kind: The message's: joined, words, statistics, update, activations, gradient, sums or
            refusal.
        quantities: What left.
        withheld: What did not, and why.
    """

    time: str
    run: str
    study: str
    round_number: int
    kind: str
    quantities: tuple[Quantity, ...]
    withheld: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the whole reply."""
        return sum(quantity.num_bytes for quantity in self.quantities)


_SETTINGS = Cost("public", "follows from public settings and the ledger; no patient's data")
_COUNTS = Cost("none", "exact sums over held-out patients, no DP")
COUNTS_OF_PLUGIN = Cost("none", "exact sums of a plug-in over held-out patients, no DP")
_ALWAYS = dict.fromkeys(("version", "kind", "site"), Cost("public", "names the message and site"))
_COSTS: Mapping[str, Mapping[str, Cost]] = {
    "joined": {
        "kind": Cost("none", "that it joins: it has as much data as the study needs"),
        "public_num_patients": Cost("public", "stated in site.toml"),
    },
    "words": {"epsilon": _SETTINGS, "ledger_head": _SETTINGS},
    "statistics": dict.fromkeys(("epsilon", "ledger_head", "noise", "min_count"), _SETTINGS),
    "update": {
        "epsilon": _SETTINGS,
        "ledger_head": _SETTINGS,
        "noise": _SETTINGS,
        "num_examples": Cost("none", "exact number of training images, no DP"),
        "loss": Cost("none", "exact mean over training images, no DP"),
    },
    "sums": {
        whose + name: _COUNTS
        for whose in ("", "global ")  # as messages name those of the global model
        for name in (
            "count", "loss", "matrix", "confusion", "correct", "scores", "calibration",
            "dice", "dice_present", "hd95", "surface_dice", "pixels", "volume", "detection",
            "ngrams", "words", "rouge_l", "meteor", "findings",
        )
    },
    "secure reply": {"payload": Cost("public", "keys and encrypted shares; no patient's data")},
    "refusal": {"reason": Cost("none", "a code without detail: of policy, ledger or data")},
}  # fmt: skip
# Arrays that are one quantity, by the message's kind.
_TOGETHER = {"update": "update"}


def list_quantities(
    content: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Cost]
) -> tuple[Quantity, ...]:
    """Return every quantity of a packed reply.

    Args:
        content: The reply's records: the values of "medfed", and perhaps "arrays".
        costs: Of what the site paid for, by name; they go before the fixed ones.

    Raises:
        ReleaseError: A quantity whose cost nobody states. It must not leave.
    """
    kind = str(content["medfed"]["kind"])
    sizes: dict[str, int] = {}
    for record, values in content.items():
        if record not in ("medfed", "arrays"):
            raise ReleaseError(f"Expected the records medfed and arrays, got {record!r}.")
        is_arrays = record == "arrays"
        parts = _array_sizes(values) if is_arrays else _sizes(values)
        for part, num_bytes in parts.items():
            name = _TOGETHER.get(kind, part) if is_arrays else part
            sizes[name] = sizes.get(name, 0) + num_bytes
    known = {**_ALWAYS, **_COSTS.get(kind, {}), **costs}
    unknown = sorted(set(sizes) - set(known))
    if unknown:
        raise ReleaseError(
            f"Expected a stated cost for all that leaves in {kind!r}, got none for "
            f"{', '.join(unknown)}. Add it to client/releases.py."
        )
    return tuple(Quantity(name, size, *known[name]) for name, size in sizes.items())


def write_release(folder: Path, release: Release) -> None:
    """Append `release` to the list in the state folder, through to the disk.

    Raises:
        OSError: It could not be written: the reply must not leave.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / RELEASES_FILE
    is_new = not path.exists()
    table = {
        **vars(release),
        "quantities": [vars(quantity) for quantity in release.quantities],
        "withheld": dict(release.withheld),
    }
    line = json.dumps(table, sort_keys=True).encode() + b"\n"
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line  # what a power cut tore stays a line of its own
        file.write(line)
        file.flush()
        to_disk(file.fileno())
    if is_new:
        sync_folder(folder)


def read_releases(folder: Path) -> tuple[tuple[Release, ...], int]:
    """Return the releases in the state folder, oldest first, and how many lines were torn.

    Raises:
        ReleaseError: The list cannot be read.
    """
    path = folder / RELEASES_FILE
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read ({error}). Run as the site's user.") from None
    read = [_read(line) for line in lines if line]
    found = tuple(release for release in read if release is not None)
    return found, len(read) - len(found)


def total_bytes(releases: Iterable[Release]) -> dict[str, dict[Protection, int]]:
    """Return the bytes that left, by kind of reply and by what covers them."""
    totals: dict[str, dict[Protection, int]] = {}
    for release in releases:
        row = totals.setdefault(release.kind, dict.fromkeys(get_args(Protection), 0))
        for quantity in release.quantities:
            row[quantity.protection] += quantity.num_bytes
    return totals


def now() -> str:
    """Return the time as the list states it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _sizes(values: Mapping[str, Any]) -> dict[str, int]:
    return {part: len(part.encode()) + _num_bytes(value) for part, value in values.items()}


def _array_sizes(packed: Any) -> dict[str, int]:
    # Here: whoever only reads the list does not wait for Flower to load.
    from medfed.common.messages import array_sizes

    return array_sizes(packed)


def _num_bytes(value: Any) -> int:
    """Size of a value as messages carry it: text in UTF-8, numbers in eight bytes."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bool):
        return 1
    if isinstance(value, int | float):
        return 8
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(map(_num_bytes, value))
    raise ReleaseError(f"Expected numbers, texts and bytes in a reply, got {type(value).__name__}.")


def _read(line: bytes) -> Release | None:
    try:
        table = json.loads(line)
        quantities = tuple(Quantity(**part) for part in table.pop("quantities"))
        return Release(**table, quantities=quantities)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
