"""What the page says of a classification."""

from collections.abc import Sequence

from medfed.common.tasks import Classification
from medfed.simulations.explaining.classification import (
    COVERED,
    ClassExplanation,
    Evidence,
    explain_classes,
)
from medfed.simulations.explaining.load import Examination, Trained, model_inputs
from medfed.simulations.explaining.page import Content, Plate
from medfed.simulations.explaining.plates import as_seen, map_picture, plain_picture
from medfed.simulations.reporting.tables import Table, figure

_NUM_CLASSES = 3
# A class that is all but excluded needs no picture.
_LEAST_PROBABILITY = 0.05
# How much further the odds must fall than elsewhere for the place to matter: by a tenth.
_CLEARLY = 0.9


def about_classes(trained: Trained, task: Classification, examination: Examination) -> Content:
    """Explain the most probable classes of one examination."""
    inputs = model_inputs(examination, trained.study)
    probabilities, classes = explain_classes(
        trained.model, task, inputs, _NUM_CLASSES, _LEAST_PROBABILITY
    )
    plates = [Plate("image", plain_picture(examination), "The image", as_seen(examination))]
    for number, explained in enumerate(classes, start=1):
        for position, evidence in enumerate(explained.evidence):
            view = position if len(explained.evidence) > 1 else None
            if view is None or examination.present[view]:
                plates.append(_plate(number, explained, evidence, examination, view))
    descending = sorted(probabilities.items(), key=lambda item: -item[1])
    return Content(
        title="What speaks for each class",
        headline=_headline(task, classes),
        plates=tuple(plates),
        scale=("nothing here speaks for the class", "most"),
        shows=_shows(task),
        hides=_hides(classes[0].evidence[0].grid),
        table=Table(
            ("Class", "Probability"),
            tuple((name, _written(probability, 3)) for name, probability in descending),
        ),
        facts={
            "probabilities": probabilities,
            "classes": [_facts(explained) for explained in classes],
        },
    )


def _shows(task: Classification) -> tuple[str, ...]:
    others = "" if task.mode == "multilabel" else " over the other classes'"
    return (
        "Bright: there, features of the network's last layer raised this class' score"
        f"{others}, as Grad-CAM sums them up.",
        "Each map has its own scale: its brightest place is 1. Two maps cannot be compared in "
        "strength.",
        f"The check below a map covers its brightest {COVERED:.0%} of the image with the image's "
        "mean, then the same shape in eight other places. If the map is right about the model, "
        "the first lowers the probability more.",
    )


def _hides(grid: Sequence[int]) -> tuple[str, ...]:
    return (
        "Where the disease is. The model may go by a marker, a tube or a scanner's frame, and a "
        "map on the right organ does not prove the right reason.",
        "What speaks against the class, and anything finer than the network's last grid, which "
        f"has {' x '.join(map(str, grid))} cells: smooth edges come from enlarging it.",
        "How far the probability can be trusted: see the calibration in the run's report.",
    )


def _headline(task: Classification, classes: list[ClassExplanation]) -> str:
    if task.mode != "multilabel":
        return f"{classes[0].name}, probability {_written(classes[0].probability)}"
    named = [explained.name for explained in classes if explained.probability >= 0.5]
    return ", ".join(named) or f"None of {len(task.classes)} findings reaches probability 0.5"


def _plate(
    number: int,
    explained: ClassExplanation,
    evidence: Evidence,
    examination: Examination,
    view: int | None,
) -> Plate:
    name = "" if view is None else examination.views[view]
    return Plate(
        f"class-{number}-{name}".rstrip("-"),
        map_picture(examination, evidence.map, view),
        f"{explained.name}, {_written(explained.probability)}" + (f", {name}" if name else ""),
        _check(explained.probability, evidence),
    )


def _check(probability: float, evidence: Evidence) -> str:
    covered, elsewhere = evidence.when_covered, evidence.when_covered_elsewhere
    if covered is None or elsewhere is None:
        return "Nothing in the last layer speaks for this class."
    matters = _odds(covered) < _CLEARLY * _odds(elsewhere)
    verdict = "This place matters more" if matters else "This place matters no more"
    return (
        f"Brightest {COVERED:.0%} covered: {_written(probability, 3)} → {_written(covered, 3)}; "
        f"the same shape elsewhere: {_written(elsewhere, 3)}. {verdict} than others."
    )


def _odds(probability: float) -> float:
    # In odds, since a probability near 1 hardly moves.
    return probability / max(1 - probability, 1e-12)


def _written(probability: float, digits: int = 2) -> str:
    """A probability that is never rounded to certainty."""
    least = 10.0**-digits
    if probability < least / 2:
        return f"< {figure(least, digits)}"
    if probability > 1 - least / 2:
        return f"> {figure(1 - least, digits)}"
    return figure(probability, digits)


def _facts(explained: ClassExplanation) -> dict[str, object]:
    return {
        "name": explained.name,
        "probability": explained.probability,
        "grid": [list(evidence.grid) for evidence in explained.evidence],
        "when_covered": [evidence.when_covered for evidence in explained.evidence],
        "when_covered_elsewhere": [
            evidence.when_covered_elsewhere for evidence in explained.evidence
        ],
    }
