"""What every task must do: sums that add up, losses of single images, honest shapes."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.common.metrics import MetricSums, add_sums, of_families
from medfed.common.study import StudyConfig
from medfed.common.tasks import evaluate_apart, pooled_metrics, report
from medfed.common.tasks.classification import Classification
from medfed.common.tasks.protocol import Batch, Examples, Task
from medfed.common.tasks.report import Report
from medfed.common.tasks.segmentation import Segmentation
from medfed.common.text import Vocabulary
from medfed.server.released_sums import ReleasedSums

NUM = 7
SIZE = 16
WORDS = ("heart", "normal", "effusion", ".", "no", "left")
TEXTS = ("Heart normal. No effusion.", "Left effusion.", "", "Unheard of", "No", "Left", "Heart.")

KINDS: dict[str, dict[str, Any]] = {
    "multiclass": {"classes": ["a", "b", "c"]},
    "multilabel": {"classes": ["a", "b", "c"], "mode": "multilabel"},
    "ordinal": {"classes": ["a", "b", "c"], "mode": "ordinal"},
    "binary": {"type": "segmentation", "classes": ["a"]},
    "exclusive": {"type": "segmentation", "classes": ["a", "b"]},
    "overlapping": {"type": "segmentation", "classes": ["a", "b"], "mode": "multilabel"},
    "report": {"type": "report", "report": {"max_words": 5, "findings": {"e": ["effusion"]}}},
}


def task_of(study: StudyConfig) -> Task:
    if study.task.type == "report":
        return Report(study, Vocabulary(WORDS))
    return (Segmentation if study.task.type == "segmentation" else Classification)(study)


def examples_of(kind: str) -> Examples:
    rng = np.random.default_rng(0)
    labels: Any = rng.integers(0, 3, NUM)
    if kind == "multilabel":
        labels = rng.integers(0, 2, (NUM, 3)).astype(np.uint8)
    masks = rng.integers(0, 2 if kind == "binary" else 3, (NUM, SIZE, SIZE)).astype(np.uint8)
    masks[2] = 0
    return Examples(labels, masks, TEXTS)


def outputs_of(kind: str, task: Task) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    if kind == "report":
        return torch.randn(NUM, 6, task.num_outputs, generator=rng)
    segmentation = KINDS[kind].get("type") == "segmentation"
    return torch.randn(NUM, task.num_outputs, *[SIZE] * 2 * segmentation, generator=rng)


class Answers(nn.Module):
    """Its images are the outputs that it gives."""

    def forward(self, images: Tensor, *_: Tensor) -> Tensor:
        return images


def echo(model: nn.Module, images: Tensor, **_: Any) -> list[SimpleNamespace]:
    """Write the most likely words; an image's text depends on that image only."""
    return [SimpleNamespace(tokens=image.argmax(dim=1).tolist()) for image in images]


@pytest.fixture
def chosen(
    kind: str, make_study: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> tuple[Task, Batch]:
    monkeypatch.setattr(report, "beam_search", echo)
    task = task_of(make_study(task=KINDS[kind], data={"image_size": SIZE}))
    targets = task.targets(examples_of(kind))
    return task, Batch(task.inputs(outputs_of(kind, task), (), targets), targets)


def part_of(batch: Batch, chosen: slice | Tensor) -> Batch:
    return Batch(tuple(part[chosen] for part in batch.inputs), batch.targets[chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_any_split_add_up_to_the_sums_of_all(chosen: tuple[Task, Batch]) -> None:
    task, batch = chosen
    whole = task.evaluate(Answers(), batch)
    assert {name: array.shape for name, array in whole.items()} == task.sum_shapes()
    assert all(array.dtype == np.int64 and (array >= 0).all() for array in whole.values())
    for edges in ([0, 1, NUM], [0, 3, 4, NUM], range(NUM + 1)):
        parts = [
            task.evaluate(Answers(), part_of(batch, slice(a, b)))
            for a, b in itertools.pairwise(edges)
        ]
        total = add_sums(parts[::-1])
        assert {n: v.tolist() for n, v in total.items()} == {
            n: v.tolist() for n, v in whole.items()
        }
        assert task.metrics(total) == task.metrics(whole)


class Counting(Answers):
    """Counts its passes."""

    passes = 0

    def forward(self, images: Tensor, *_: Tensor) -> Tensor:
        self.passes += 1
        return images


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_images_are_told_apart_in_one_pass(chosen: tuple[Task, Batch]) -> None:
    task, batch = chosen
    # Not in a row, and one with an image alone: of a report that one has no words.
    groups = [np.array([0, 5]), np.array([2]), np.array([1, 3, 4, 6])]
    model = Counting()
    found = evaluate_apart(task, model, batch, groups)
    assert model.passes == 1
    for sums, rows in zip(found, groups, strict=True):
        alone = task.evaluate(Answers(), part_of(batch, torch.from_numpy(rows)))
        assert {n: v.tolist() for n, v in sums.items()} == {n: v.tolist() for n, v in alone.items()}

    class Own(type(task)):  # type: ignore[misc]
        def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
            assert len(batch.targets) < NUM
            return super().evaluate(model, batch)  # type: ignore[no-any-return]

    task.__class__ = Own
    again = evaluate_apart(task, Counting(), batch, groups)
    assert [{n: v.tolist() for n, v in sums.items()} for sums in again] == [
        {n: v.tolist() for n, v in sums.items()} for sums in found
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_moves_another_ones_loss(chosen: tuple[Task, Batch]) -> None:
    task, batch = chosen
    outputs, targets = batch.inputs[0], batch.targets
    changed, others = outputs.clone(), targets.clone()
    changed[0] *= -40
    others[0] = targets[1]
    losses = task.loss_per_image(outputs, targets)
    assert losses.shape == (NUM,)
    again = task.loss_per_image(changed, others)
    assert torch.equal(again[1:], losses[1:])
    assert again[0] != losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_a_patients_images_has_a_finite_loss(chosen: tuple[Task, Batch]) -> None:
    task, batch = chosen
    outputs = torch.zeros_like(batch.inputs[0]).requires_grad_()
    losses = task.loss_per_image(outputs, torch.zeros_like(batch.targets))
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_patients_under_vmap_are_those_of_a_loop(chosen: tuple[Task, Batch]) -> None:
    task, batch = chosen
    outputs_PK = batch.inputs[0][:6].reshape(3, 2, *batch.inputs[0].shape[1:])
    targets_PK = batch.targets[:6].reshape(3, 2, *batch.targets.shape[1:])
    gradient_of = torch.func.grad(lambda o, t: task.loss_per_image(o, t).mean())
    together = torch.func.vmap(gradient_of)(outputs_PK, targets_PK)
    alone = [gradient_of(o, t) for o, t in zip(outputs_PK, targets_PK, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_figures_have_one_title_each_and_no_images_give_no_figure(
    chosen: tuple[Task, Batch],
) -> None:
    task, _ = chosen
    assert len({figure.key for figure in task.figures}) == len(task.figures)
    assert len({figure.title for figure in task.figures}) == len(task.figures)
    nothing = {n: np.zeros(shape, dtype=np.int64) for n, shape in task.sum_shapes().items()}
    assert task.metrics(nothing) == {"num_images": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_sum_but_the_count_is_of_a_family(chosen: tuple[Task, Batch]) -> None:
    task, _ = chosen
    named = {name for names in task.families.values() for name in names}
    assert named | {"count"} == set(task.sum_shapes())


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_figures_are_those_of_the_added_sums(chosen: tuple[Task, Batch]) -> None:
    task, batch = chosen
    parts = [
        task.evaluate(Answers(), part_of(batch, slice(a, b)))
        for a, b in itertools.pairwise([0, 1, 4, NUM])
    ]
    assert pooled_metrics(task, parts) == task.metrics(add_sums(parts))
    assert pooled_metrics(task, []) == {"num_images": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_figures_need_only_the_sum_of_those_that_released_the_same(
    chosen: tuple[Task, Batch],
) -> None:
    task, batch = chosen
    parts = [
        task.evaluate(Answers(), part_of(batch, slice(a, b)))
        for a, b in itertools.pairwise([0, 1, 4, NUM])
    ]
    parts[1] = of_families(parts[1], task.families, list(task.families)[:1])
    released = ReleasedSums()
    for number in (2, 0, 1):
        released.add(f"site-{number}", parts[number])
    assert pooled_metrics(task, released.parts) == pooled_metrics(task, parts)
    sites = [group["sites"] for group in released.table()]
    assert sorted(sites) == [["site-0", "site-2"], ["site-1"]]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_a_family_are_those_of_the_sites_that_release_it(
    chosen: tuple[Task, Batch],
) -> None:
    task, batch = chosen
    one, other = (task.evaluate(Answers(), part_of(batch, s)) for s in (slice(0, 4), slice(4, NUM)))
    whole, alone = task.metrics(add_sums([one, other])), task.metrics(one)
    differing = 0
    for family in task.families:
        others = [name for name in task.families if name != family]
        reticent = of_families(other, task.families, others)
        assert set(task.metrics(reticent)) <= set(task.metrics(other))
        pooled = pooled_metrics(task, [one, reticent])
        ours = task.metrics(of_families(one, task.families, [family]))
        theirs = task.metrics(of_families(one, task.families, others))
        for key in set(ours) - set(theirs):
            # Of the first site alone, not its sums over both sites' images.
            assert pooled[key] == alone[key]
            differing += alone[key] != whole.get(key)
        for key in set(theirs) - {"num_images"}:
            assert pooled[key] == whole[key]
        assert pooled["num_images"] == whole["num_images"]
    assert differing
