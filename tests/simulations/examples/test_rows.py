"""What examples say is what the figures count."""

import numpy as np
import pytest
import torch

from medfed.common.metrics import classification_sums
from medfed.common.metrics.findings import FindingLabeller
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.common.tasks import Batch, Segmentation
from medfed.simulations.examples.classification import predicted_classes
from medfed.simulations.examples.report import compared_findings, marked_sentences
from medfed.simulations.examples.segmentation import planes, predicted_planes


@pytest.mark.parametrize("mode", ["multiclass", "ordinal", "multilabel"])
def test_predicted_classes_are_those_that_the_figures_count(mode: str) -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 60)
    labels = rng.integers(0, 4, 60)
    if mode == "multilabel":
        probabilities, labels = rng.random((60, 4)), rng.integers(0, 2, (60, 4)).astype(np.uint8)
    predicted = predicted_classes(probabilities, mode)
    sums = classification_sums(probabilities, labels, np.ones(60), mode)  # type: ignore[arg-type]
    assert predicted.sum(axis=0).tolist() == sums["confusion"][:, :, 1].sum(axis=1).tolist()


def test_predicted_class_of_grades_is_the_median() -> None:
    # Most probable is grade 0; grade 1 or more has probability 0.6.
    probabilities = np.array([[0.4, 0.3, 0.3]])
    assert predicted_classes(probabilities, "ordinal").tolist() == [[False, True, False]]
    assert predicted_classes(probabilities, "multiclass").tolist() == [[True, False, False]]


def segmentation_study(mode: str, classes: list[str]) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "x"},
            "task": {"type": "segmentation", "mode": mode, "classes": classes},
            "data": {"image_size": 16},
            "model": {"name": "unet"},
            "training": {"rounds": 1, "local_epochs": 1},
            "privacy": {"unit": "none"},
        },
        "test",
    )


@pytest.mark.parametrize(
    ("mode", "classes"),
    [("multiclass", ["a"]), ("multiclass", ["a", "b", "c"]), ("multilabel", ["a", "b"])],
)
def test_predicted_planes_are_those_that_the_figures_count(mode: str, classes: list[str]) -> None:
    task = Segmentation(segmentation_study(mode, classes))
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, task.num_outputs, 16, 16, generator=generator)
    highest = 2 ** len(classes) if mode == "multilabel" else len(classes) + 1
    masks = torch.randint(0, highest, (3, 16, 16), generator=generator).to(torch.uint8)

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return logits

    inputs = (torch.zeros(3, 1, 16, 16),)
    sums = task.evaluate(Fixed(), Batch(inputs, masks))
    overlapping = mode == "multilabel"
    predicted = np.stack(
        [
            predicted_planes(one.numpy(), overlapping=overlapping)
            for one in task.predict(Fixed(), inputs)
        ]
    )
    truth = np.stack(
        [planes(mask, len(classes), overlapping=overlapping) for mask in masks.numpy()]
    )
    pixels = [part.sum(axis=(0, 2, 3)).tolist() for part in (predicted & truth, predicted, truth)]
    assert np.transpose(pixels).tolist() == sums["pixels"].tolist()


LABELLER = FindingLabeller({"effusion": ("effusion",), "nodule": ("nodule", "opacity")})


def test_marked_sentences_name_what_each_mentions() -> None:
    text = "FINDINGS:\n\nSmall effusion of 3.5 cm, no nodule. Is there an opacity? Heart normal"
    assert [(row["text"], row["findings"]) for row in marked_sentences(text, LABELLER)] == [
        ("FINDINGS:", []),
        ("Small effusion of 3.5 cm, no nodule.", ["effusion"]),
        ("Is there an opacity?", ["nodule"]),
        ("Heart normal", []),
    ]
    assert marked_sentences("", LABELLER) == []


def test_compared_findings_tell_found_missed_and_invented_apart() -> None:
    true, other = "There is a nodule.", "An effusion. No nodule."
    assert compared_findings(true, true, LABELLER) == {"nodule": "found"}
    assert compared_findings(true, other, LABELLER) == {"effusion": "invented", "nodule": "missed"}
    assert compared_findings("Clear lungs.", "No effusion.", LABELLER) == {}
