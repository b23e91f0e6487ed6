"""What each entry of a run's ledgers must say, by the study and by who adds the noise."""

from typing import Any

from medfed.simulations.auditing.collecting import Check
from medfed.simulations.auditing.run_ledgers import SERVER, ArmRecord

Table = dict[str, Any]
_AT_SITES = ("noise_multiplier", "sample_rate", "images_per_patient", "max_grad_norm")


def against_study(arm: ArmRecord, entries: dict[str, list[Table]]) -> Check:
    """Compare every entry of the arm's run with its study, and its noise with the round's record.

    Args:
        arm: The coordinator's records.
        entries: Each ledger's, by name; that of the coordinator itself is `SERVER`.
    """
    check = Check(
        "entries against the study",
        "Unit, noise, rate, steps, K and bound of each entry are the study's.",
    )
    for name, own in entries.items():
        used = arm.used_in(name)
        last = {
            entry["event"]["round_number"]: entry["index"]
            for entry in own
            if entry["event"]["run"] == arm.run
        }
        for entry in own:
            event, where = entry["event"], f"{arm.name}/{name}: entry {entry['index']}"
            if event["run"] != arm.run:
                continue
            check.looked_at += 1
            if event["study"] != arm.study_digest:
                check.problems.append(f"{where} names another study.")
            if event["kind"] != "training":
                continue
            number = event["round_number"]
            expected = _of_server(arm, number) if name == SERVER else _of_site(arm)
            if number in used and entry["index"] == last[number]:
                expected["noise"] = arm.printed(name, used[number])[1]
            check.problems += [
                f"{where} says {key} = {event.get(key)}, the study or the round {value}."
                for key, value in expected.items()
                if event.get(key, "gaussian" if key == "mechanism" else None) != value
            ]
    _check_bounds(arm, check)
    return check


def _of_site(arm: ArmRecord) -> Table:
    """What a site's entry of a round of training must say; where noise is from, its round says."""
    privacy, steps = arm.study["privacy"], arm.study["training"]["local_steps"]
    unit = privacy["unit"]
    expected = {"unit": unit, "mechanism": "gaussian", "extra_delta": 0.0}
    if unit in ("patient", "record"):
        return expected | {name: privacy[name] for name in _AT_SITES} | {"steps": steps}
    expected |= {"images_per_patient": 0, "sample_rate": 1.0}
    if unit == "none":  # rounds in passes over the images state no steps
        return expected | {
            "noise": "none", "noise_multiplier": 0.0, "max_grad_norm": 0.0, "steps": steps or 0,
        }  # fmt: skip
    expected |= _per_site(arm)
    # A site cannot vouch for noise that the server adds.
    return expected if arm.distributed else expected | {"noise": "none"}


def _per_site(arm: ArmRecord) -> Table:
    privacy = arm.study["privacy"]
    return {
        "steps": 1,
        # With adaptive clipping, of update and count together.
        "noise_multiplier": privacy["noise_multiplier"],
        "max_grad_norm": privacy["site"]["max_update_norm"],
        "mechanism": "discrete_gaussian" if arm.distributed else "gaussian",
    }


def _of_server(arm: ArmRecord, round_number: int) -> Table:
    expected = {
        "unit": "site",
        "images_per_patient": 0,
        "extra_delta": 0.0,
        "sample_rate": 1.0 if arm.distributed else arm.study["federation"]["fraction"],
        **_per_site(arm),
    }
    del expected["max_grad_norm"]  # it may move: the round's record has it
    if round_number in arm.rounds:
        expected["max_grad_norm"] = arm.rounds[round_number].get("update_bound")
    return expected


def _check_bounds(arm: ArmRecord, check: Check) -> None:
    """The bound on updates starts at the study's; without adaptive clipping it stays there."""
    if not arm.site_level:
        return
    section = arm.study["privacy"]["site"]
    for number, record in sorted(arm.rounds.items()):
        fixed = number == 1 or section["adaptive_quantile"] is None
        if fixed and record.get("update_bound") != section["max_update_norm"]:
            check.problems.append(
                f"{arm.name}: round {number} states the bound {record.get('update_bound')} on an "
                f"update's norm, the study {section['max_update_norm']}."
            )
