"""What went wrong in a simulation on purpose: which sites, how, and what hostile ones reached."""

from medfed.common.study.failures import DATA_POISONS, FailuresSection
from medfed.simulations.reporting import results
from medfed.simulations.reporting.arms import FEDERATED, optional_json
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import ABSENT, Table, whole

_POISONS = {
    "sign_flip": "sends its update times -{strength:g}",
    "scale": "sends its update times {strength:g}",
    "noise": "sends noise in place of its update, {strength:g} times as long",
    "label_flip": "trains on images that it calls another class",
    "backdoor": "trains on images with a trigger, labelled as the target",
}
_WANTED = {
    "label_flip": "a class called as poisoned sites call it",
    "backdoor": "the trigger taken for the target",
}


def failures_of(run: RunData) -> FailuresSection | None:
    """Return what goes wrong in this run, None if nothing does."""
    simulation = run.study.simulation
    if simulation is None:
        return None
    failures = simulation.failures
    return failures if failures.any or failures.drift or simulation.partition.noise else None


def failures_statement(run: RunData) -> tuple[str, ...]:
    """Say what goes wrong, a line a thing."""
    failures = failures_of(run)
    if failures is None:
        return ()
    lines = []
    if failures.drop_out:
        lines.append(
            f"Each site gives no answer to a round with probability {failures.drop_out:g}."
        )
    lines += [
        f"{site} answers from round {first} on."
        if first <= run.study.training.rounds
        else f"{site} answers in no round."
        for site, first in sorted(failures.first_round.items())
    ]
    lines += [
        f"{site} trains and answers after the deadline with probability {share:g} a round: what it "
        "spent is spent."
        for site, share in sorted(failures.stragglers.items())
    ]
    if failures.drop_out or failures.first_round:
        lines.append(
            "A round without an answer is counted as failed (dropped out) in Participation."
        )
    lines += [
        f"{site} {_POISONS[kind].format(strength=failures.strength)}."
        for site, kind in sorted(failures.poisoned.items())
    ]
    if failures.boost != 1.0:
        lines.append(f"Sites with poisoned data multiply their updates by {failures.boost:g}.")
    if run.study.privacy.at_sites and failures.poisoned_by(*DATA_POISONS):
        lines.append(
            "Sites with poisoned data clip and add noise as all do, before anything is multiplied: "
            "nothing would make a hostile hospital do either."
        )
    if failures.backdoor is not None:
        door = failures.backdoor
        lines.append(
            f"The trigger is a white square of {door.size} pixels in the lower right corner, the "
            f"target {door.target}; it is in the images of {door.share:.0%} of a hostile site's "
            "training patients."
        )
    if failures.drift is not None:
        lines += [
            f"{site} has another scanner from round {first} on, for training and held-out images."
            for site, first in sorted(failures.drift.from_round.items())
        ]
    return (*lines, *_label_noise(run))


def _label_noise(run: RunData) -> tuple[str, ...]:
    """Say which training labels are wrong, and in which arms."""
    noise = run.study.simulation.partition.noise if run.study.simulation else None
    if noise is None:
        return ()
    named = (f"{true} is called {said}" for true, said in sorted(noise.pairs.items()))
    mistakes = ", ".join(named) or "any other class takes the right one's place"
    return (
        f"Labels of a training patient are wrong with probability {noise.rate:g} at "
        f"{', '.join(noise.sites) or 'all sites'}, in all arms: {mistakes}. Held-out labels are "
        "right.",
    )


def attack_share(run: RunData, kind: str, share: str) -> float | None:
    """Return a share that `attacks.json` has of the federated model; None where it has none.

    Args:
        run: The run.
        kind: backdoor or label_flip.
        share: success, or without_trigger.
    """
    from medfed.simulations.attack_success import ATTACKS_FILE

    found = optional_json(run.folder / ATTACKS_FILE).get(FEDERATED, {}).get(kind, {}).get(share)
    return None if found is None else float(found)


def attacks_table(run: RunData) -> Table | None:
    """Return how often hostile sites got what they wanted; None where none poisoned its data."""
    from medfed.simulations.attack_success import ATTACKS_FILE

    found = optional_json(run.folder / ATTACKS_FILE)
    shown = results.leading(run)
    rows = []
    for arm, attacks in found.items():
        final = run.arms[arm].final_metrics.get(shown.key) if arm in run.arms else None
        for kind, facts in attacks.items():
            rows.append(
                (
                    results.arm_title(arm),
                    _WANTED[kind],
                    whole(facts["images"]),
                    _percent(facts["success"]),
                    _percent(facts.get("without_trigger")),
                    ABSENT if final is None else f"{final:.3f}",
                )
            )
    columns = ("Arm", "What hostile sites want", "Held-out images", "Success",
               "Without the trigger", shown.title)  # fmt: skip
    return Table(columns, tuple(rows), text=frozenset({0, 1})) if rows else None


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"
