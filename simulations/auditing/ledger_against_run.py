"""Ledgers against the coordinator's record: heads, rounds, study, weights and times.

Two books, kept by two parties. An entry that its own site removed, changed or dated anew, signed
again with the right key, no longer agrees with the coordinator's; a coordinator that sends an old
model cannot hide it, because the entry names the weights that training started from.

Under site-level privacy the coordinator keeps a ledger too, of the noise that it adds or that all
sites do together. It is held to the rounds like the sites'.
"""

import json
import math
from datetime import timedelta
from typing import Any

from medfed.simulations.auditing.collecting import Check
from medfed.simulations.auditing.findings import Finding
from medfed.simulations.auditing.heads_alone import absent_sites
from medfed.simulations.auditing.ledger_against_study import against_study
from medfed.simulations.auditing.ledger_weights import check_weights
from medfed.simulations.auditing.run_ledgers import SERVER, ArmRecord, moment
from medfed.simulations.auditing.verify_ledger import (
    CLOCK_TOLERANCE,
    check_countersignatures,
    epsilon,
)

Entries = dict[str, list[dict[str, Any]]]
# The trainer's accountant has a coarser grid, and rounds up.
_AGREEMENT = 0.01
_MAX_ROUNDS = 12  # epsilon is recomputed at so many rounds of a site at most
# All of a simulation runs by one clock; a hospital has its own.
_CLOCK_TOLERANCE = timedelta(seconds=5)


def against_run(arm: ArmRecord, delta: float, entries: Entries) -> list[Finding]:
    """Return what comparing the sites' ledgers of one arm with its records shows.

    Args:
        arm: The coordinator's records.
        delta: At which the rounds printed epsilon.
        entries: Each ledger's by name, as `verify_ledger.check_entries` returns them.
    """
    checks = [
        _heads(arm, entries),
        _rounds(arm, entries),
        _printed(arm, entries, delta),
        against_study(arm, entries),
        check_weights(arm, entries),
        _times(arm, entries),
    ]
    return [finding for check in checks for finding in check.findings("ledger")]


def _heads(arm: ArmRecord, entries: Entries) -> Check:
    check = Check(
        "ledgers against the coordinator's heads",
        "Every head that the coordinator signed is an entry of the site's ledger, in order.",
    )
    if arm.heads is None:
        return check
    coordinator = str(arm.heads[0].get("public_key", "")) if arm.heads else ""
    for site, own in entries.items():
        if site == SERVER:  # its own book, which it does not sign for itself
            continue
        mine = arm.signed(site)
        text = "\n".join(json.dumps(head, sort_keys=True) for head in mine).encode()
        _, problems = check_countersignatures(text, coordinator, own)
        check.problems += [f"{arm.name}/{site}: {problem}." for problem in problems]
        signed = {head.get("round_number") for head in mine}
        check.problems += [
            f"{arm.name}/{site}: the coordinator signed no head for round {number}."
            for number in sorted(arm.used_in(site))
            if number not in signed
        ]
        check.looked_at += len(mine)
    return check


def _rounds(arm: ArmRecord, entries: Entries) -> Check:
    check = Check(
        "every training was charged", "Each round in which a site trained has its entry, once."
    )
    sites = {site for record in arm.rounds.values() for site in record["sites"]}
    sites -= set(absent_sites(arm))  # heads_alone says what can be checked of those
    servers = {SERVER} if arm.site_level else set()
    for site in sorted(sites | servers | set(entries)):
        own = entries.get(site, [])
        charged = [e["event"]["round_number"] for e in _of_run(arm, own) if _is_training(e)]
        released = sorted(arm.used_in(site))
        private = arm.study["privacy"]["unit"] != "none"
        missing = [number for number in released if number not in charged]
        check.looked_at += len(released)
        if missing and (private or own):
            check.problems.append(
                f"{arm.name}/{site}: no entry for {_rounds_in_words(missing)}.{_where(site, own)}"
            )
        elif missing:
            check.notes.append(f"{arm.name}/{site}: trained without privacy, and without a ledger.")
        extra = sorted(set(charged) - set(released))
        if extra:
            check.notes.append(
                f"{arm.name}/{site}: {_rounds_in_words(extra)} charged and not used (over-counted: "
                "allowed)."
            )
        twice = sorted({number for number in charged if charged.count(number) > 1})
        if twice:
            check.notes.append(
                f"{arm.name}/{site}: {_rounds_in_words(twice)} charged more than once (a repeated "
                "round: each of its releases counts)."
            )
    return check


def _where(name: str, entries: list[dict[str, Any]]) -> str:
    if name != SERVER or entries:
        return ""
    return " Expected the coordinator's ledger in server_state, or where plan.json says."


def _printed(arm: ArmRecord, entries: Entries, delta: float) -> Check:
    check = Check(
        "epsilon printed and recomputed",
        f"Every epsilon that rounds printed is the ledger's, within {_AGREEMENT:.0%}.",
    )
    for site, own in entries.items():
        released = arm.released(site)
        every = max(1, math.ceil(len(released) / _MAX_ROUNDS))
        for number in [*released[::-1][::every]][::-1]:
            value, _ = arm.printed(site, number)
            if value is None:
                continue
            recomputed = _recomputed(arm, site, own, number, value, delta)
            check.looked_at += 1
            if not _agree(recomputed, value):
                check.problems.append(
                    f"{arm.name}/{site}: round {number} printed epsilon {value:.4f}, the ledger up "
                    f"to it gives {recomputed:.4f}."
                )
    return check


def _recomputed(
    arm: ArmRecord,
    name: str,
    entries: list[dict[str, Any]],
    number: int,
    printed: float,
    delta: float,
) -> float:
    """Return epsilon of all that a ledger held when a round was printed.

    That is up to the head that came with the round, which the coordinator signed. Without one, it
    is up to the round's last entry; if there were later ones already (a round repeated with seeded
    noise is not charged again), up to the last that is as old as the round.
    """
    place = {entry["hash"]: index for index, entry in enumerate(entries)}
    charged = {used: named for named, used in arm.used_in(name).items()}.get(number, number)
    heads = [h["head"] for h in arm.signed(name) if h.get("round_number") == charged]
    if heads and heads[-1] in place:
        return _epsilon(entries[: place[heads[-1]] + 1], delta)
    last = max((i for i, e in enumerate(entries) if _is_of(arm, e, charged)), default=-1)
    value = _epsilon(entries[: last + 1], delta)
    end = arm.latest(number)
    if _agree(value, printed) or end is None:
        return value
    oldest = sum(moment(entry["time"]) <= end for entry in entries)
    later = _epsilon(entries[: max(oldest, last + 1)], delta)
    return later if _agree(later, printed) else value


def _epsilon(entries: list[dict[str, Any]], delta: float) -> float:
    """Return epsilon of the private entries, as rounds print it; others have a note of their own.

    A site whose policy lets it release without privacy counts the private releases alone.
    """
    return epsilon([e["event"] for e in entries if e["event"]["unit"] != "none"], delta)


def _agree(recomputed: float, printed: float) -> bool:
    return abs(recomputed - printed) <= _AGREEMENT * max(printed, 1e-3)


def _times(arm: ArmRecord, entries: Entries) -> Check:
    check = Check("times of entries", "Each entry was written during its round.")
    tolerance = CLOCK_TOLERANCE if arm.deployed else _CLOCK_TOLERANCE
    for site, own in entries.items():
        used = arm.used_in(site)
        for entry in filter(_is_training, _of_run(arm, own)):
            number, time = entry["event"]["round_number"], moment(entry["time"])
            check.looked_at += 1
            early, late = arm.earliest(number), arm.latest(used.get(number, number))
            where = f"{arm.name}/{site}: entry {entry['index']} is dated {entry['time']},"
            if early is not None and time < early - tolerance:
                check.problems.append(f"{where} before round {number} can have begun.")
            # A site that came too late may even have begun when the round was over.
            if number in used and late is not None and time > late + tolerance:
                check.problems.append(f"{where} after round {used[number]} was over.")
    return check


def _of_run(arm: ArmRecord, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["event"]["run"] == arm.run]


def _is_of(arm: ArmRecord, entry: dict[str, Any], round_number: int) -> bool:
    return (entry["event"]["run"], entry["event"]["round_number"]) == (arm.run, round_number)


def _is_training(entry: dict[str, Any]) -> bool:
    return bool(entry["event"]["kind"] == "training")


def _rounds_in_words(numbers: list[int]) -> str:
    return f"round{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
