"""Reports: what the model learns is cut to its vocabulary, what it is judged by is not."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.losses import word_losses
from medfed.common.models import build_model
from medfed.common.study import StudyConfig
from medfed.common.tasks import report
from medfed.common.tasks.protocol import Batch, Examples
from medfed.common.tasks.report import Report
from medfed.common.text import BEGIN, END, PAD, UNKNOWN, Vocabulary, tokenise

MakeStudy = Callable[..., StudyConfig]
WORDS = ("the", "lungs", "are", "clear", ".", "no", "effusion", "heart", "is", "large", "nodule")
REPORTS = (
    "The lungs are clear. No effusion.",
    "Heart is large; bilateral effusions\u2026",
    "",
    "Innominate venous \u00e9ctasia",
)
FINDINGS = {"effusion": ["effusion"], "nodule": ["nodule"]}


def study_with(make_study: MakeStudy, max_words: int = 6, **section: Any) -> StudyConfig:
    text = {"max_words": max_words, "beam_size": 2} | section
    return make_study(
        task={"type": "report", "report": text},
        data={"image_size": 16},
        model={
            "name": "report_lstm", "embedding_size": 6, "hidden_size": 8, "attention_size": 5
        },
    )  # fmt: skip


def task_of(make_study: MakeStudy, max_words: int = 6, **section: Any) -> Report:
    return Report(study_with(make_study, max_words, **section), Vocabulary(WORDS))


def examples_of(*reports: str) -> Examples:
    return Examples(np.zeros((len(reports), 2), dtype=np.uint8), None, reports)


class EvenWords(nn.Module):
    """Finds every word equally likely."""

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, len(WORDS) + 4)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Sets what beam search "writes", one text an image."""

    def write(texts: Sequence[str]) -> None:
        left = iter(texts)

        def search(model: nn.Module, images: Tensor, **_: Any) -> list[SimpleNamespace]:
            vocabulary = Vocabulary(WORDS)
            return [
                SimpleNamespace(tokens=[*vocabulary.encode(next(left), 40).tolist()])
                for _ in range(len(images))
            ]

        monkeypatch.setattr(report, "beam_search", search)

    return write


def test_targets_hold_the_words_to_learn_and_the_whole_report(make_study: MakeStudy) -> None:
    task = task_of(make_study, max_words=5)
    targets = task.targets(examples_of(*REPORTS))
    assert targets.dtype == torch.int64
    assert targets[:, :7].tolist() == [
        [BEGIN, 4, 5, 6, 7, 8, END],
        [BEGIN, 11, 12, 13, 8, UNKNOWN, END],
        [BEGIN, END, PAD, PAD, PAD, PAD, PAD],
        [BEGIN, UNKNOWN, UNKNOWN, UNKNOWN, END, PAD, PAD],
    ]
    assert report._unpack(targets[:, 7:].numpy()) == [tokenise(text) for text in REPORTS]


def test_targets_of_no_image_and_of_images_without_text(make_study: MakeStudy) -> None:
    task = task_of(make_study)
    assert task.targets(examples_of()).shape == (0, 8)
    assert task.targets(examples_of("", " ")).tolist() == [[BEGIN, END, *[PAD] * 6]] * 2


def test_model_reads_the_words_before_each_word_that_it_predicts(make_study: MakeStudy) -> None:
    task = task_of(make_study)
    targets = task.targets(examples_of(*REPORTS))
    images = torch.zeros(4, 1, 16, 16)
    inputs = task.inputs(images, (), targets)
    assert inputs[0] is images
    assert torch.equal(inputs[1], targets[:, :7])
    logits = torch.randn(4, 7, 15, generator=torch.Generator().manual_seed(0))
    expected = word_losses(logits, targets[:, 1:8], PAD)
    assert torch.equal(task.loss_per_image(logits, targets), expected)


def test_report_of_unknown_words_only_can_be_learned(make_study: MakeStudy) -> None:
    task = task_of(make_study)
    targets = task.targets(examples_of(REPORTS[3]))
    logits = torch.zeros(1, 7, 15, requires_grad=True)
    loss = task.loss_per_image(logits, targets)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(np.log(15))
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, :4].any()
    assert not logits.grad[0, 4:].any()


def test_written_text_is_judged_by_the_whole_report_not_by_its_known_start(
    make_study: MakeStudy, writes: Callable[[Sequence[str]], None]
) -> None:
    task = task_of(make_study, max_words=3)
    texts = ("the lungs are clear . no effusion .", "an unknown word is not a match")
    targets = task.targets(examples_of(*texts))
    batch = Batch(task.inputs(torch.zeros(2, 1, 16, 16), (), targets), targets)
    # The second comes back as UNKNOWN words but for "is" and "no".
    writes(("the lungs are", "an unknown word is"))
    figures = task.metrics(task.evaluate(EvenWords(), batch))
    assert figures["bleu1"] == pytest.approx(np.exp(1 - 15 / 7) * 4 / 7)
    assert figures["length_ratio"] == pytest.approx(7 / 15)
    assert figures["loss"] == pytest.approx(np.log(15), abs=1e-5)


def test_the_same_text_as_the_report_scores_one(
    make_study: MakeStudy, writes: Callable[[Sequence[str]], None]
) -> None:
    task = task_of(make_study, max_words=20, findings=FINDINGS)
    targets = task.targets(examples_of(REPORTS[0], "Large effusion. No nodule."))
    batch = Batch(task.inputs(torch.zeros(2, 1, 16, 16), (), targets), targets)
    writes((REPORTS[0], "Large effusion. No nodule."))
    figures = task.metrics(task.evaluate(EvenWords(), batch))
    for key in ("bleu1", "bleu4", "rouge_l", "finding_f1", "finding_recall/effusion"):
        assert figures[key] == 1.0
    # Two reports in one chunk each, of 14 words.
    assert figures["meteor"] == pytest.approx(1 - 0.5 * (2 / 14) ** 3)
    assert "finding_recall/nodule" not in figures
    assert {figure.key for figure in task.figures} <= set(figures)
    assert task.figures[0].key == "finding_f1"


def test_findings_are_counted_by_what_is_said_not_by_words(
    make_study: MakeStudy, writes: Callable[[Sequence[str]], None]
) -> None:
    task = task_of(make_study, max_words=20, findings=FINDINGS)
    texts = ("No effusion.", "Large effusion.", "Large effusion; nodule.")
    targets = task.targets(examples_of(*texts))
    batch = Batch(task.inputs(torch.zeros(3, 1, 16, 16), (), targets), targets)
    writes(("Effusion.", "No effusion.", "Effusion. Nodule."))
    sums = task.evaluate(EvenWords(), batch)
    assert sums["findings"].tolist() == [[[0, 1], [1, 1]], [[2, 0], [0, 1]]]
    figures = task.metrics(sums)
    assert figures["finding_precision"] == figures["finding_recall"] == 2 / 3


def test_images_without_a_report_are_left_out(
    make_study: MakeStudy, writes: Callable[[Sequence[str]], None]
) -> None:
    task = task_of(make_study)
    targets = task.targets(examples_of("", "The lungs are clear.", "..."))
    batch = Batch(task.inputs(torch.zeros(3, 1, 16, 16), (), targets), targets)
    writes(("the lungs are clear .",))
    figures = task.metrics(task.evaluate(EvenWords(), batch))
    assert figures["num_images"] == figures["bleu4"] == 1.0
    targets = task.targets(examples_of("", "..."))
    batch = Batch(task.inputs(torch.zeros(2, 1, 16, 16), (), targets), targets)
    sums = task.evaluate(EvenWords(), batch)
    assert {name: array.shape for name, array in sums.items()} == task.sum_shapes()
    assert task.metrics(sums) == {"num_images": 0.0}


def test_study_without_findings_has_no_figures_of_them(make_study: MakeStudy) -> None:
    task = task_of(make_study)
    assert "findings" not in task.sum_shapes()
    assert task.figures[0].key == "bleu4"
    assert not any(figure.key.startswith("finding") for figure in task.figures)


def test_finding_without_a_phrase_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(StudyError, match="expected phrases of one sentence"):
        task_of(make_study, findings={"effusion": []})


def test_the_real_network_writes_and_is_judged(make_study: MakeStudy) -> None:
    task = task_of(make_study, findings=FINDINGS)
    model = build_model(study_with(make_study, findings=FINDINGS), task.num_outputs).eval()
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    targets = task.targets(examples_of(*REPORTS))
    with torch.inference_mode():
        sums = task.evaluate(model, Batch(task.inputs(images, (), targets), targets))
        written = task.write(model, images)
    assert {name: array.shape for name, array in sums.items()} == task.sum_shapes()
    assert all(array.dtype == np.int64 and (array >= 0).all() for array in sums.values())
    assert task.metrics(sums)["num_images"] == 3
    assert all(len(task.vocabulary.tokens(text.tokens)) <= 6 for text in written)


def test_texts_of_many_lengths_have_few_widths(make_study: MakeStudy) -> None:
    """A GPU records a step for each; what they hold is as it was."""
    task = task_of(make_study)
    texts = [" ".join(["nodule"] * number) for number in range(1, 101)]
    batches = [task.targets(examples_of(text)) for text in texts]
    assert len({batch.shape for batch in batches}) == 3
    found = [report._unpack(batch[:, 8:].numpy())[0] for batch in batches]
    assert found == [text.split() for text in texts]
