"""What of `[simulation]` goes with the rest of a study, and why not."""

from typing import TYPE_CHECKING

from medfed.common.study.failures import DATA_POISONS, UPDATE_POISONS, FailuresSection

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig


def check_simulation(study: "StudyConfig") -> None:
    """Refuse what cannot be simulated with this study.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    if study.simulation is None:
        return
    _check_failures(study, study.simulation.failures)
    _check_annotation(study)


def check_annotation(study: "StudyConfig") -> str:
    """Return why an annotator must not choose whom to label in this study; empty if it may."""
    if study.privacy.at_sites:
        return (
            f'with privacy.unit = "{study.privacy.unit}": who is labelled next depends on all '
            "patients together, so one patient more changes whom others are compared with, and no "
            "bound on one patient's gradient covers that"
        )
    if study.task.type == "report":
        return "with a report task: how sure a model is of a text is not worked out here"
    return ""


def _check_annotation(study: "StudyConfig") -> None:
    simulation = study.simulation
    if simulation is None or simulation.annotation is None:
        return
    why = check_annotation(study)
    if why:
        raise ValueError(f"simulation.annotation {why}. Remove one of the two.")
    if not simulation.labels.scarce:
        raise ValueError(
            "simulation.annotation without simulation.labels: every patient has labels from the "
            "start. Set simulation.labels.share below 1."
        )


def _check_failures(study: "StudyConfig", failures: FailuresSection) -> None:
    sent = failures.poisoned_by(*UPDATE_POISONS)
    if study.secure_aggregation.enabled and (sent or failures.boost != 1.0):
        raise ValueError(
            "simulation.failures.poisoned with secure_aggregation: what a site sends is masked "
            'before it could be poisoned here. Remove one of the two; "label_flip" and "backdoor" '
            "go with it, without boost."
        )
    if failures.poisoned_by(*DATA_POISONS):
        if study.task.type != "classification":
            raise ValueError(
                "simulation.failures.poisoned by label_flip or backdoor is for classification, the "
                f'task is {study.task.type}. Poison the update, e.g. "sign_flip".'
            )
        _check_classes(study, failures)
    if failures.stragglers and study.federation.algorithm in ("fedbuff", "split"):
        why = (
            "nobody is late there. Set simulation.pace.seconds: who trains slowly"
            if study.federation.algorithm == "fedbuff"
            else "it answers step by step. Set simulation.failures.drop_out"
        )
        raise ValueError(
            "simulation.failures.stragglers with federation.algorithm = "
            f'"{study.federation.algorithm}": {why}.'
        )
    if failures.drift is not None and study.data.harmonise != "none":
        raise ValueError(
            "simulation.failures.drift with data.harmonise: tables of grey levels are made once, "
            "of the scanners of round 1. Remove one of the two."
        )
    late = [] if failures.drift is None else failures.drift.from_round.values()
    if any(number > study.training.rounds for number in late):
        raise ValueError(
            f"simulation.failures.drift.from_round after training.rounds = {study.training.rounds}"
            ": nothing would drift. Set an earlier round."
        )


def _check_classes(study: "StudyConfig", failures: FailuresSection) -> None:
    classes = study.task.classes
    named = {*failures.flipped, *failures.flipped.values()}
    if failures.backdoor is not None:
        named.add(failures.backdoor.target)
    unknown = sorted(named - set(classes))
    if unknown:
        raise ValueError(
            f"simulation.failures names the class {', '.join(unknown)}; the classes are "
            f"{', '.join(classes)}. Correct it."
        )
    if study.task.mode == "multilabel" and failures.poisoned_by("label_flip"):
        raise ValueError(
            'simulation.failures.poisoned = "label_flip" with task.mode = "multilabel": an image '
            'may show any number of classes, so none is called another. Use "backdoor".'
        )
    if len(classes) < 2:
        raise ValueError("simulation.failures.poisoned needs two classes or more. Remove it.")
