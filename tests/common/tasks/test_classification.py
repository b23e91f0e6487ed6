"""Classes, findings and grades: targets, losses, probabilities, figures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

from medfed.common.errors import DataError
from medfed.common.metrics import classification_metrics, classification_sums
from medfed.common.study import StudyConfig
from medfed.common.tasks.classification import Classification
from medfed.common.tasks.protocol import Batch, Examples

MakeStudy = Callable[..., StudyConfig]
GRADES = ("none", "mild", "moderate", "severe")


def task_of(make_study: MakeStudy, mode: str) -> Classification:
    return Classification(make_study(task={"mode": mode, "classes": list(GRADES)}))


def examples_of(labels: np.ndarray) -> Examples:
    return Examples(labels, None, ("",) * len(labels))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_one_class_and_many_findings_keep_their_losses_and_sums(
    make_study: MakeStudy, answers: nn.Module
) -> None:
    outputs = random(6, 4)
    one = task_of(make_study, "multiclass")
    labels = np.array([0, 1, 2, 3, 3, 1])
    targets = one.targets(examples_of(labels))
    losses = F.cross_entropy(outputs, torch.from_numpy(labels), reduction="none")
    assert torch.equal(one.loss_per_image(outputs, targets), losses)
    sums = one.evaluate(answers, Batch((outputs,), targets))
    expected = classification_sums(
        outputs.double().softmax(dim=1).numpy(), labels, losses.double().numpy(), "multiclass"
    )
    assert all(np.array_equal(sums[name], expected[name]) for name in expected)
    assert one.metrics(sums) == classification_metrics(expected, GRADES)

    many = task_of(make_study, "multilabel")
    flags = (random(6, 4) > 0.5).numpy().astype(np.uint8)
    targets = many.targets(examples_of(flags))
    assert targets.dtype == torch.float32
    losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)
    sums = many.evaluate(answers, Batch((outputs,), targets))
    expected = classification_sums(
        outputs.double().sigmoid().numpy(), flags, losses.double().numpy(), "multilabel"
    )
    assert all(np.array_equal(sums[name], expected[name]) for name in expected)
    assert "kappa" not in many.metrics(sums)


@pytest.mark.parametrize(
    ("mode", "outputs", "first"),
    [("multiclass", 4, "auroc"), ("multilabel", 4, "auroc"), ("ordinal", 3, "kappa")],
)
def test_task_says_how_many_outputs_it_needs_and_what_it_leads_with(
    make_study: MakeStudy, mode: str, outputs: int, first: str
) -> None:
    task = task_of(make_study, mode)
    assert task.num_outputs == outputs
    assert task.figures[0].key == first


def test_grade_probabilities_are_the_differences_of_the_answers(make_study: MakeStudy) -> None:
    task = task_of(make_study, "ordinal")
    above = torch.tensor([[0.9, 0.6, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[0.1, 0.3, 0.5, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(task.probabilities(above.logit()), expected)
    # "Above 1" at most as probable as "above 0".
    contradictory = torch.tensor([[0.2, 0.6, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[0.8, 0.0, 0.1, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(task.probabilities(contradictory.logit()), expected)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_grade_probabilities_are_probabilities(make_study: MakeStudy, scale: float) -> None:
    probabilities = task_of(make_study, "ordinal").probabilities(scale * random(200, 3))
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(200))


def test_grades_are_judged_by_how_far_off_they_are(
    make_study: MakeStudy, answers: nn.Module
) -> None:
    task = task_of(make_study, "ordinal")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 60)
    predicted = np.clip(truth + rng.integers(-1, 2, 60), 0, 3)
    # Sure of every threshold: the predicted grade is the number of those passed.
    outputs = torch.from_numpy(np.where(predicted[:, None] > np.arange(3), 9.0, -9.0)).float()
    targets = task.targets(examples_of(truth))
    figures = task.metrics(task.evaluate(answers, Batch((outputs,), targets)))
    kappa = cohen_kappa_score(truth, predicted, weights="quadratic")
    assert figures["kappa"] == pytest.approx(kappa)
    assert figures["grade_error"] == np.abs(truth - predicted).mean()
    assert figures["accuracy"] == (truth == predicted).mean()
    assert {figure.key for figure in task.figures} <= set(figures)


@pytest.mark.parametrize(
    ("mode", "labels"),
    [
        ("multiclass", np.array([0, 4])),
        ("ordinal", np.array([-1, 2])),
        ("multilabel", np.array([[0, 1, 0, 2]], dtype=np.uint8)),
    ],
)
def test_targets_refuse_labels_outside_the_classes(
    make_study: MakeStudy, mode: str, labels: np.ndarray
) -> None:
    with pytest.raises(DataError, match="Expected labels from 0 to"):
        task_of(make_study, mode).targets(examples_of(labels))


def test_a_class_that_no_image_has_leaves_its_figures_out(
    make_study: MakeStudy, answers: nn.Module
) -> None:
    task = task_of(make_study, "multiclass")
    targets = task.targets(examples_of(np.array([0, 1, 0, 1])))
    figures = task.metrics(task.evaluate(answers, Batch((random(4, 4),), targets)))
    assert "sensitivity/severe" not in figures
    assert "auroc/severe" not in figures
    assert np.isfinite(list(figures.values())).all()


def test_extras_follow_the_images_into_the_model(make_study: MakeStudy) -> None:
    task = task_of(make_study, "multiclass")
    images, present, tabular = random(2, 1, 4, 4), torch.ones(2, 2), torch.zeros(2, 3)
    inputs = task.inputs(images, (present, tabular), torch.zeros(2, dtype=torch.int64))
    assert [part.shape for part in inputs] == [(2, 1, 4, 4), (2, 2), (2, 3)]

    class Fused(nn.Module):
        def forward(self, images: Tensor, present: Tensor, tabular: Tensor) -> Tensor:
            return torch.cat([present, tabular[:, :2]], dim=1)

    targets = task.targets(examples_of(np.array([0, 1])))
    sums = task.evaluate(Fused(), Batch(inputs, targets))
    # Equal first outputs: the first class is predicted for both.
    assert sums["matrix"].tolist()[:2] == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert task.predict(Fused(), inputs).shape == (2, 4)
