"""Which weights each entry says that training started from: an old model cannot be replayed."""

import hashlib
import json
from functools import lru_cache
from typing import Any

from medfed.common.errors import MedfedError
from medfed.simulations.auditing.collecting import Check
from medfed.simulations.auditing.run_ledgers import SERVER, ArmRecord

Table = dict[str, Any]
_MAX_SITES = 256  # of a round of secure aggregation


def check_weights(arm: ArmRecord, entries: dict[str, list[Table]]) -> Check:
    """Compare what every entry was trained from with the weights of the round before.

    Args:
        arm: The coordinator's records.
        entries: Each ledger's, by name; that of the coordinator itself is `SERVER`.
    """
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
    check.problems += _first_turns(arm, starts)
    for site, own in entries.items():
        for entry in own:
            event = entry["event"]
            if (event["run"], event["kind"]) != (arm.run, "training"):
                continue
            number = event["round_number"]
            sent = _sent_to(arm, number, site)
            recorded = arm.in_turn or arm.in_parts
            if starts.get(number) is None or (recorded and not sent):
                continue
            check.looked_at += 1
            if recorded:
                wrong = _wrong_with_sent(arm, number, event["release"], sent)
            else:
                wrong = _wrong_with_release(arm, site, entry, starts, own)
            if wrong:
                check.problems.append(
                    f"{arm.name}/{site}: entry {entry['index']}, round {event['round_number']}, "
                    f"{wrong}."
                )
    return check


def _sent_to(arm: ArmRecord, number: int, site: str) -> set[str]:
    """Return digests of what a site was sent in its turn, or of its parts, as far as known."""
    recorded = arm.rounds.get(number, {}).get("sites", {}).get(site, {}).get("start_sha256")
    return arm.turns.get((number, site), set()) | ({recorded} if recorded else set())


def _wrong_with_sent(arm: ArmRecord, number: int, release: str, sent: set[str]) -> str:
    fits = any(release == _release(arm, number, weights, []) for weights in sent)
    when = "in this round" if arm.in_parts else "in its turn"
    return "" if fits else f"was trained from weights that it was not sent {when}"


def _first_turns(arm: ArmRecord, starts: dict[int, str | None]) -> list[str]:
    """Return what is wrong with where rounds began: their first site goes on from the last one."""
    wrong = []
    for number, record in sorted(arm.rounds.items()):
        [first, *_] = record.get("order") or [""]
        sent = record["sites"].get(first, {}).get("start_sha256")
        if sent and starts.get(number) not in (None, sent):
            wrong.append(
                f"{arm.name}: round {number} began from other weights than the round before it "
                "ended in."
            )
    return wrong


def _wrong_with_release(
    arm: ArmRecord,
    name: str,
    entry: Table,
    starts: dict[int, str | None],
    entries: list[Table],
) -> str:
    """Return what the entry's release shows to be wrong: the weights, or who shared the noise.

    With distributed noise each site's share depends on how many sites it was told of, and its
    release names them. Of an attempt at a round that failed, nobody recorded how many were asked.
    With scaffold a release names the correction, which a round's record has.
    """
    number = entry["event"]["round_number"]
    shared = arm.distributed and name != SERVER
    told = [[str(count)] for count in range(1, _MAX_SITES + 1)] if shared else [[]]
    if arm.corrected:
        sent = arm.rounds.get(number, {}).get("sites", {}).get(name, {}).get("correction_sha256")
        if not sent:  # an attempt that became no round
            return ""
        told = [[sent]]

    def fitting(weights: str | None) -> list[list[str]]:
        release = entry["event"]["release"]
        return [more for more in told if release == _release(arm, number, weights, more)]

    fits = fitting(starts[number])
    if not fits:
        for first, weights in starts.items():
            if fitting(weights):
                old = "the first weights" if first == 1 else f"the weights after round {first - 1}"
                return f"was trained from {old}: an old model was replayed"
        return "was trained from weights that this run never recorded"
    last = max(e["index"] for e in entries if _is_of(arm, e, number))
    if not shared or number not in arm.released(name) or entry["index"] != last:
        return ""
    [count], asked = fits[0], len(arm.asked(number))
    wrong = f"was told that {count} sites share the noise, and {asked} were asked"
    return "" if count == str(asked) else wrong


def _is_of(arm: ArmRecord, entry: Table, round_number: int) -> bool:
    return (entry["event"]["run"], entry["event"]["round_number"]) == (arm.run, round_number)


def _release(arm: ArmRecord, round_number: int, weights: str | None, more: list[str]) -> str:
    parts = (arm.study_digest, arm.run, str(round_number), str(weights), *more)
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
    from medfed.common.models import build_model, shared_state
    from medfed.common.state_dicts import digest
    from medfed.common.study import StudyConfig
    from medfed.common.tasks import make_task

    try:
        study = StudyConfig.model_validate_json(study_text)
        model = build_model(study, make_task(study, words).num_outputs)
        return digest(shared_state(model, study))
    except (MedfedError, ValueError, OSError):
        return None
