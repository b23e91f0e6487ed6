#!/usr/bin/env python3
"""Checks a medfed privacy ledger with nothing of medfed: read this file, then run it.

    python verify_ledger.py LEDGER [--delta 1e-5] [--json]

Needs Python 3.11 or later, `cryptography` and `dp-accounting`. LEDGER is a folder with ledger.jsonl
and ledger.pub (a site's state folder, or what `medfed site ledger export` wrote), or ledger.jsonl
itself with --key. It checks

- every line: its canonical form, its place in the hash chain, the site's Ed25519 signature, times
  that never decrease, and values that mean something;
- the coordinator's countersignatures, if there are any: each is signed by the coordinator's key
  and names an entry by its hash (a ledger that was cut or rewritten since lacks it), in the
  ledger's order, at times that fit;
- epsilon: recomputed from the entries by Google's privacy loss distributions, pessimistically
  rounded, neighbouring relation add or remove one unit. Distributed discrete noise is accounted by
  Renyi DP, and everything composed with it. `extra_delta` is taken off delta first. An entry of
  unit "none" (no privacy) makes epsilon infinite; different units have no common epsilon.
A resumed run may charge a round twice, or (seeded noise) once, with a later entry as its head.

Exit code: 0 all checks passed, 7 at least one finding, 2 the input cannot be read.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import dp_accounting
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

GENESIS = "0" * 64
LINE = {"index", "previous", "time", "event", "hash", "signature"}
EVENT = {
    "release", "study", "run", "round_number", "unit", "images_per_patient", "noise_multiplier",
    "sample_rate", "steps", "max_grad_norm", "noise", "kind", "extra_delta", "mechanism",
}  # fmt: skip
# Entries from before distributed noise existed lack the field.
OPTIONAL = {"mechanism": "gaussian"}
COUNTERSIGNATURE = {"run", "site", "round_number", "head", "time", "public_key", "signature"}
PURPOSE = b"medfed countersignature 1\n"
# How far the hospital's clock may be off the coordinator's.
CLOCK_TOLERANCE = timedelta(minutes=10)
OK, FINDING, UNUSABLE = 0, 7, 2
Table = dict[str, Any]


def canonical(table: Table) -> bytes:
    """Return the one way in which a table is written: sorted keys, Python's separators."""
    return json.dumps(table, sort_keys=True).encode()


def check_entries(content: bytes, key: Ed25519PublicKey) -> tuple[list[Table], list[str]]:
    """Return every line that is a table, and in words what is wrong with any line."""
    *lines, rest = content.split(b"\n")
    problems = [f"the last line is torn after {len(rest)} bytes"] if rest else []
    entries: list[Table] = []
    previous: Table = {"hash": GENESIS, "time": ""}
    for index, line in enumerate(lines):
        try:
            entry = json.loads(line)
            wrong = _wrong_with_entry(entry, line, index, previous, key)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"entry {index}: cannot be read ({type(error).__name__}: {error})")
            continue
        problems += [f"entry {index}: {what}" for what in wrong]
        entries.append(entry)
        previous = entry
    return entries, problems


def _wrong_with_entry(
    entry: Table, line: bytes, index: int, previous: Table, key: Ed25519PublicKey
) -> list[str]:
    if set(entry) != LINE:
        raise ValueError(f"expected the fields {', '.join(sorted(LINE))}")
    body = {name: entry[name] for name in ("index", "previous", "time", "event")}
    checks = {
        "is not in canonical form": line == canonical(entry),
        f"its number is {entry['index']}": entry["index"] == index,
        "does not follow the entry before it": entry["previous"] == previous["hash"],
        "its hash is not that of its content": (
            entry["hash"] == hashlib.sha256(canonical(body)).hexdigest()
        ),
        "its signature is not by this key": _signed(key, entry["signature"], entry["hash"]),
        "is dated before the entry before it": _time(entry["time"], previous["time"]),
    }
    return [what for what, right in checks.items() if not right] + _wrong_with_event(entry["event"])


def _wrong_with_event(event: Table) -> list[str]:
    missing = EVENT - set(event) - set(OPTIONAL)
    if missing:
        raise ValueError(f"its event lacks {', '.join(sorted(missing))}")
    mechanism, private = event.get("mechanism", OPTIONAL["mechanism"]), event["unit"] != "none"
    noise, rate = event["noise"], event["sample_rate"]
    # Nobody noises what has no privacy; a site's own book says none where the server adds it.
    bare = event["unit"] in ("none", "site") if noise == "none" else private
    checks = {
        "unit": event["unit"] in ("patient", "record", "site", "none"),
        "noise": noise in ("secure", "seeded", "none") and bare,
        "kind": event["kind"] in ("training", "words", "statistics"),
        "mechanism": mechanism in ("gaussian", "discrete_gaussian"),
        "round_number": type(event["round_number"]) is int and event["round_number"] >= 0,
        "steps": type(event["steps"]) is int and event["steps"] >= private,
        "extra_delta": 0 <= event["extra_delta"] < 1,
        "noise_multiplier": 0 < event["noise_multiplier"] < math.inf or not private,
        "sample_rate": (0 < rate <= 1 and (rate == 1 or mechanism == "gaussian")) or not private,
    }
    return [f"has the unknown field {name}" for name in sorted(set(event) - EVENT)] + [
        f"{name} = {event.get(name)!r} has no meaning"
        for name, right in checks.items()
        if not right
    ]


def _signed(key: Ed25519PublicKey, signature: str, digest: str) -> bool:
    try:
        key.verify(bytes.fromhex(signature), bytes.fromhex(digest))
    except (InvalidSignature, ValueError):
        return False
    return bytes.fromhex(signature).hex() == signature  # fromhex also reads capitals and spaces


def _time(now: str, before: str) -> bool:
    """Whether `now` is a time in UTC that is not before `before` ("" for the first entry)."""
    if (moment := datetime.fromisoformat(now)).utcoffset() != timedelta(0):
        raise ValueError("its time is not in UTC")
    return not before or moment >= datetime.fromisoformat(before)


def check_countersignatures(
    content: bytes, coordinator: str, entries: Sequence[Table]
) -> tuple[list[Table], list[str]]:
    """Return the coordinator's signatures, and what is wrong with them or with the ledger.

    Args:
        content: Of countersignatures.jsonl, the site's copies of what the coordinator signed.
        coordinator: The coordinator's public key, 64 hexadecimal digits; "" to take the first's.
        entries: The ledger's, as `check_entries` returns them.
    """
    signed: list[Table] = []
    problems: list[str] = []
    for number, line in enumerate(content.splitlines()):
        try:
            table = json.loads(line)
            coordinator = coordinator or table["public_key"]
            wrong = _wrong_with_countersignature(table, coordinator, entries, signed)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"countersignature {number}: cannot be read ({error})")
            continue
        signed.append(table)
        name = f"countersignature {number} (run {table['run']}, round {table['round_number']})"
        problems += [f"{name}: {what}" for what in wrong]
    return signed, problems


def _wrong_with_countersignature(
    table: Table, coordinator: str, entries: Sequence[Table], before: Sequence[Table]
) -> list[str]:
    if set(table) != COUNTERSIGNATURE:
        raise ValueError(f"expected the fields {', '.join(sorted(COUNTERSIGNATURE))}")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(coordinator))
    body = {name: value for name, value in table.items() if name != "signature"}
    try:
        key.verify(bytes.fromhex(table["signature"]), PURPOSE + canonical(body))
    except InvalidSignature:
        return ["is not signed by the coordinator's key"]
    place = {entry["hash"]: index for index, entry in enumerate(entries)}
    if (index := place.get(table["head"])) is None:
        return ["the ledger lacks the entry that the coordinator signed"]
    round_of = (table["run"], table["round_number"])
    checks = {
        f"no entry of that round up to entry {index}, which it signs": any(
            (e["event"]["run"], e["event"]["round_number"]) == round_of
            for e in entries[: index + 1]
        ),
        f"signs entry {index}, after a later one was signed": all(
            place.get(other["head"], -1) <= index
            for other in before
            if other["run"] == table["run"]
        ),
        f"entry {index} is dated after it": (
            datetime.fromisoformat(entries[index]["time"])
            <= datetime.fromisoformat(table["time"]) + CLOCK_TOLERANCE
        ),
    }
    wrong = [what for what, right in checks.items() if not right]
    for entry in entries[index + 1 :]:
        # A run's next round starts after the coordinator has signed the one before.
        if (entry["event"]["run"], entry["event"]["round_number"] - 1) == round_of:
            moment = datetime.fromisoformat(entry["time"]) + CLOCK_TOLERANCE
            if moment < datetime.fromisoformat(table["time"]):
                wrong.append(f"entry {entry['index']}, of the round after, is dated before it")
            break
    return wrong


def epsilon(events: Sequence[Table], delta: float) -> float:
    """Return the epsilon of all `events` together at `delta`; infinite if no finite one follows."""
    if not events:
        return 0.0
    left = delta - math.fsum(event["extra_delta"] for event in events)
    if left <= 0 or len({event["unit"] for event in events}) > 1 or events[0]["unit"] == "none":
        return math.inf
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for event in events:
        steps[event["noise_multiplier"], event["sample_rate"]] += event["steps"]
    # A sum of discrete Gaussians has at most the Renyi divergence of the continuous one.
    discrete = any(event.get("mechanism", "gaussian") != "gaussian" for event in events)
    return _composed(tuple(sorted(steps.items())), left, discrete)


@lru_cache(maxsize=1024)
def _composed(
    steps: tuple[tuple[tuple[float, float], int], ...], delta: float, renyi: bool
) -> float:
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if renyi:
        accountant = RdpAccountant(neighboring_relation=relation)
    else:
        # Ten times finer than the trainer's grid where that is cheap.
        grid = 1e-4 if all(noise >= 0.5 for (noise, _), _ in steps) else 1e-3
        accountant = PLDAccountant(relation, value_discretization_interval=grid)
    for (noise, rate), count in steps:
        mechanism = dp_accounting.GaussianDpEvent(noise)
        if rate < 1:
            mechanism = dp_accounting.PoissonSampledDpEvent(rate, mechanism)
        accountant.compose(mechanism, count)
    value = float(accountant.get_epsilon(delta))
    return 0.0 if value < 0 else value  # not max(0, value), which would turn NaN into 0


def examine(path: Path, key_file: Path | None = None, delta: float | None = None) -> Table:
    """Return everything there is to say about the ledger at `path`, ready for JSON.

    Raises:
        OSError, ValueError: No ledger or key there, or a key of another kind.
    """
    ledger = path / "ledger.jsonl" if path.is_dir() else path
    folder = ledger.parent
    key = load_pem_public_key((key_file or folder / "ledger.pub").read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the key is not an Ed25519 public key")
    entries, problems = check_entries(ledger.read_bytes(), key)
    signed: list[Table] = []
    if (copies := folder / "countersignatures.jsonl").exists():
        pinned = folder / "coordinator.pub"
        coordinator = pinned.read_text("ascii").strip() if pinned.exists() else ""
        signed, wrong = check_countersignatures(copies.read_bytes(), coordinator, entries)
        problems += wrong
    if len(units := {entry["event"]["unit"] for entry in entries} - {"none"}) > 1:
        problems.append(f"units are mixed ({', '.join(sorted(units))}): no common epsilon")
    if delta is None and (facts := folder / "facts.json").exists():
        delta = json.loads(facts.read_text("utf-8")).get("target_delta")
    delta = 1e-5 if delta is None else float(delta)
    return {
        "ledger": str(ledger),
        "entries": len(entries),
        "countersignatures": len(signed),
        "problems": problems,
        "passed": not problems,
        **_summary([entry["event"] for entry in entries], delta, usable=not problems),
    }


def _summary(events: list[Table], delta: float, *, usable: bool) -> Table:
    units = sorted({event["unit"] for event in events}) if usable else []
    value = epsilon(events, delta) if usable else None
    return {
        "delta": delta,
        "units": units,
        # JSON has no infinity.
        "epsilon": "infinite" if value == math.inf else value,
        "steps": sum(event["steps"] for event in events) if usable else None,
        "runs": sorted({event["run"] for event in events}) if usable else [],
        "noise": sorted({event["noise"] for event in events}) if usable else [],
    }


def _in_words(result: Table) -> str:
    lines = [
        f"{result['ledger']}: {result['entries']} entries, "
        f"{result['countersignatures']} countersignatures by the coordinator"
    ]
    lines += [f"FINDING  {problem}" for problem in result["problems"]]
    if not result["passed"]:
        return "\n".join([*lines, "No epsilon can be stated from a ledger with findings."])
    units, value = result["units"], result["epsilon"]
    value = f"{value:.4f}" if isinstance(value, float) else value
    per = f"a {units[0]}" if len(units) == 1 else f"mixed units ({', '.join(units) or 'no entry'})"
    lines.append(f"epsilon {value} for {per} at delta {result['delta']:g}, add or remove one")
    if "none" in units:
        lines.append("Some releases were without privacy: no epsilon is claimed for those.")
    if "seeded" in result["noise"]:
        lines.append("Some noise was drawn from a seed that others know: that is not private.")
    return "\n".join([*lines, "All checks passed."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks that the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(description="Check a medfed privacy ledger.")
    parser.add_argument("ledger", type=Path, help="ledger.jsonl or the folder that holds it")
    parser.add_argument("--key", type=Path, help="the site's public key [ledger.pub beside it]")
    parser.add_argument("--delta", type=float, help="delta [facts.json's, else 1e-5]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(arguments)
    try:
        result = examine(asked.ledger, asked.key, asked.delta)
    except (OSError, ValueError) as error:
        print(f"Cannot be read: {error}", file=sys.stderr)  # noqa: T201
        return UNUSABLE
    print(json.dumps(result, indent=1) if asked.json else _in_words(result))  # noqa: T201
    return OK if result["passed"] else FINDING


if __name__ == "__main__":
    sys.exit(main())
