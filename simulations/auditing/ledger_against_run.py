"""Ledgers against the coordinator's record: heads, rounds, study, weights and times.

Two books, kept by two parties. An entry that its own site removed, changed or dated anew, signed
again with the right key, no longer agrees with the coordinator's; a coordinator that sends an old
model cannot hide it, because the entry names the weights that training started from.
"""

import hashlib
import json
import math
from datetime import timedelta
from functools import lru_cache
from typing import Any

from medfed.common.errors import MedfedError
from medfed.simulations.auditing.collecting import Check
from medfed.simulations.auditing.findings import Finding
from medfed.simulations.auditing.run_ledgers import ArmRecord, moment
from medfed.simulations.auditing.verify_ledger import check_countersignatures, epsilon

Entries = dict[str, list[dict[str, Any]]]
# The trainer's accountant has a coarser grid, and rounds up.
_AGREEMENT = 0.01
_MAX_ROUNDS = 12  # epsilon is recomputed at so many rounds of a site at most
# All of a simulation runs by one clock.
_CLOCK_TOLERANCE = timedelta(seconds=5)


def against_run(arm: ArmRecord, delta: float, entries: Entries) -> list[Finding]:
    """Return what comparing the sites' ledgers of one arm with its records shows.

    Args:
        arm: The coordinator's records.
        delta: At which the rounds printed epsilon.
        entries: Each site's, as `verify_ledger.check_entries` returns them.
    """
    checks = [
        _heads(arm, entries),
        _rounds(arm, entries),
        _printed(arm, entries, delta),
        _study(arm, entries),
        _weights(arm, entries),
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
        mine = [head for head in arm.heads if head.get("site") == site]
        text = "\n".join(json.dumps(head, sort_keys=True) for head in mine).encode()
        _, problems = check_countersignatures(text, coordinator, own)
        check.problems += [f"{arm.name}/{site}: {problem}." for problem in problems]
        signed = {head.get("round_number") for head in mine}
        check.problems += [
            f"{arm.name}/{site}: the coordinator signed no head for round {number}."
            for number in arm.trained(site)
            if number not in signed
        ]
        check.looked_at += len(mine)
    return check


def _rounds(arm: ArmRecord, entries: Entries) -> Check:
    check = Check(
        "every training was charged", "Each round in which a site trained has its entry, once."
    )
    sites = {site for record in arm.rounds.values() for site in record["sites"]}
    for site in sorted(sites | set(entries)):
        own = entries.get(site, [])
        charged = [e["event"]["round_number"] for e in _of_run(arm, own) if _is_training(e)]
        trained = arm.trained(site)
        private = arm.study["privacy"]["unit"] != "none"
        missing = [number for number in trained if number not in charged]
        check.looked_at += len(trained)
        if missing and (private or own):
            check.problems.append(f"{arm.name}/{site}: no entry for {_rounds_in_words(missing)}.")
        elif missing:
            check.notes.append(f"{arm.name}/{site}: trained without privacy, and without a ledger.")
        extra = sorted(set(charged) - set(trained))
        if extra:
            check.notes.append(
                f"{arm.name}/{site}: {_rounds_in_words(extra)} charged and not completed (over-"
                "counted: allowed)."
            )
        twice = sorted({number for number in charged if charged.count(number) > 1})
        if twice:
            check.notes.append(
                f"{arm.name}/{site}: {_rounds_in_words(twice)} charged more than once (a repeated "
                "round: each of its releases counts)."
            )
    return check


def _printed(arm: ArmRecord, entries: Entries, delta: float) -> Check:
    check = Check(
        "epsilon printed and recomputed",
        f"Every epsilon that rounds printed is the ledger's, within {_AGREEMENT:.0%}.",
    )
    for site, own in entries.items():
        trained = arm.trained(site)
        every = max(1, math.ceil(len(trained) / _MAX_ROUNDS))
        for number in [*trained[::-1][::every]][::-1]:
            value = arm.rounds[number]["sites"][site].get("epsilon")
            if value is None:
                continue
            recomputed = epsilon(_until(arm, own, number), delta)
            check.looked_at += 1
            if not abs(recomputed - value) <= _AGREEMENT * max(value, 1e-3):
                check.problems.append(
                    f"{arm.name}/{site}: round {number} printed epsilon {value:.4f}, the ledger up "
                    f"to it gives {recomputed:.4f}."
                )
    return check


def _study(arm: ArmRecord, entries: Entries) -> Check:
    check = Check(
        "entries against the study",
        "Noise, rate, steps, K and bound of each entry are the study's.",
    )
    privacy, training = arm.study["privacy"], arm.study["training"]
    at_sites = privacy["unit"] in ("patient", "record")
    expected = {"unit": privacy["unit"]}
    if at_sites:
        names = ("noise_multiplier", "sample_rate", "images_per_patient", "max_grad_norm")
        expected |= {name: privacy[name] for name in names} | {"steps": training["local_steps"]}
    for site, own in entries.items():
        for entry in _of_run(arm, own):
            event, where = entry["event"], f"{arm.name}/{site}: entry {entry['index']}"
            check.looked_at += 1
            if event["study"] != arm.study_digest:
                check.problems.append(f"{where} names another study.")
            if not _is_training(entry):
                continue
            check.problems += [
                f"{where} says {name} = {event[name]}, the study {value}."
                for name, value in expected.items()
                if event[name] != value
            ]
    return check


def _weights(arm: ArmRecord, entries: Entries) -> Check:
    check = Check(
        "each round's weights",
        "Every entry names the weights that the round before ended in: no old model was replayed.",
    )
    digests = {number: str(r["weights_sha256"]) for number, r in sorted(arm.rounds.items())}
    for number, value in digests.items():
        same = [other for other in digests if other < number and digests[other] == value]
        if same:
            check.problems.append(
                f"{arm.name}: the weights after round {number} are those after round {same[0]}."
            )
    first = _initial_weights(arm)
    if first is None and any(entries.values()):
        check.notes.append(
            f"{arm.name}: the weights of round 1 cannot be made here (a weights file or a "
            "vocabulary is missing): not checked."
        )
    starts = {1: first} | {number + 1: value for number, value in digests.items()}
    for site, own in entries.items():
        for entry in filter(_is_training, _of_run(arm, own)):
            number = entry["event"]["round_number"]
            weights = starts.get(number)
            if weights is None:
                continue
            check.looked_at += 1
            if entry["event"]["release"] != _release(arm, number, weights):
                check.problems.append(
                    f"{arm.name}/{site}: entry {entry['index']}, round {number}, was trained from "
                    f"{_whose(arm, entry, starts)}."
                )
    return check


def _whose(arm: ArmRecord, entry: dict[str, Any], starts: dict[int, str | None]) -> str:
    event = entry["event"]
    for number, weights in starts.items():
        if weights and event["release"] == _release(arm, event["round_number"], weights):
            old = "the first weights" if number == 1 else f"the weights after round {number - 1}"
            return f"{old}: an old model was replayed"
    return "weights that this run never recorded"


def _release(arm: ArmRecord, round_number: int, weights: str) -> str:
    parts = (arm.study_digest, arm.run, str(round_number), weights)
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _initial_weights(arm: ArmRecord) -> str | None:
    """Make the first weights from the study's seed and return their digest, if that can be done."""
    vocabulary = arm.folder / "vocabulary.json"
    words = (
        json.loads(vocabulary.read_text("utf-8")).get("words", []) if vocabulary.exists() else []
    )
    return _weights_of(arm.study_text.decode(), tuple(words))


@lru_cache(maxsize=8)
def _weights_of(study_text: str, words: tuple[str, ...]) -> str | None:
    from medfed.common.models import build_model, trained_state
    from medfed.common.state_dicts import digest
    from medfed.common.study import StudyConfig
    from medfed.common.tasks import make_task

    try:
        study = StudyConfig.model_validate_json(study_text)
        return digest(trained_state(build_model(study, make_task(study, words).num_outputs)))
    except (MedfedError, ValueError, OSError):
        return None


def _times(arm: ArmRecord, entries: Entries) -> Check:
    check = Check("times of entries", "Each entry was written during its round.")
    for site, own in entries.items():
        for entry in filter(_is_training, _of_run(arm, own)):
            number, time = entry["event"]["round_number"], moment(entry["time"])
            check.looked_at += 1
            early, late = arm.earliest(number), arm.latest(number)
            where = f"{arm.name}/{site}: entry {entry['index']} is dated {entry['time']},"
            if early is not None and time < early - _CLOCK_TOLERANCE:
                check.problems.append(f"{where} before round {number} can have begun.")
            if late is not None and time > late + _CLOCK_TOLERANCE:
                check.problems.append(f"{where} after round {number} was over.")
    return check


def _of_run(arm: ArmRecord, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["event"]["run"] == arm.run]


def _is_training(entry: dict[str, Any]) -> bool:
    return bool(entry["event"]["kind"] == "training")


def _until(
    arm: ArmRecord, entries: list[dict[str, Any]], round_number: int
) -> list[dict[str, Any]]:
    """Return the events up to the last entry of a round."""
    last = max(
        (
            place
            for place, entry in enumerate(entries)
            if (entry["event"]["run"], entry["event"]["round_number"]) == (arm.run, round_number)
        ),
        default=-1,
    )
    return [entry["event"] for entry in entries[: last + 1]]


def _rounds_in_words(numbers: list[int]) -> str:
    return f"round{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
