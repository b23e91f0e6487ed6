"""Report generation: the text of an image, word by word.

Targets hold, in one row of integers an image, the tokens that the model learns (BEGIN, words, END,
PAD: max_words + 2 of them) and behind them the whole report in UTF-8, eight bytes a number. What
the model learns is cut at max_words and knows only the vocabulary; what its text is compared with
must be neither, or a short vocabulary would make for good figures.

Shapes: B images, T = max_words + 2 tokens, V words.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.common.losses import word_losses
from medfed.common.metrics import (
    TEXT_FAMILIES,
    TEXT_SHAPES,
    Families,
    MetricSums,
    confusion_tables,
    text_metrics,
    text_sums,
)
from medfed.common.metrics.findings import FindingLabeller, finding_metrics
from medfed.common.models.beam_search import Decoded, beam_search
from medfed.common.models.report_lstm import ReportModel
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import WHOLE, Batch, Examples, Figure, Rows
from medfed.common.text import PAD, Vocabulary, tokenise

_BYTES = 8
# Texts are as wide as the longest of a batch, in steps of so many bytes: few widths, for a GPU
# records a step for every shape of a batch.
_STEP = 256
_FIGURES = (
    Figure("bleu4", "BLEU-4"),
    Figure("bleu1", "BLEU-1"),
    Figure("bleu2", "BLEU-2"),
    Figure("bleu3", "BLEU-3"),
    Figure("rouge_l", "ROUGE-L"),
    Figure("meteor", "METEOR"),
    Figure("loss", "Loss", higher_is_better=False),
)
_FINDING_FIGURES = (
    Figure("finding_f1", "Finding F1"),
    Figure("finding_precision", "Finding precision"),
    Figure("finding_recall", "Finding recall"),
)


class Report:
    """Cross entropy of the next word; judged on what beam search writes.

    Leads with the F1 of the findings where the study names any: a report that always says
    "normal" has good BLEU and finds nothing.
    """

    def __init__(self, study: StudyConfig, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.num_outputs = len(vocabulary)
        self._section = study.task.report
        self._labeller = FindingLabeller(self._section.findings)
        self.figures = (_FINDING_FIGURES if self._labeller.names else ()) + _FIGURES

    @property
    def families(self) -> Families:
        """Loss and text; findings, where the study names some."""
        if not self._labeller.names:
            return TEXT_FAMILIES
        return {**TEXT_FAMILIES, "findings": ("findings",)}

    @property
    def _num_tokens(self) -> int:
        return self._section.max_words + 2

    def targets(self, examples: Examples) -> Tensor:
        """Return int64 [B, T + R]: tokens, then the whole text, as long as the longest needs."""
        tokens = [
            self.vocabulary.encode(text, self._section.max_words) for text in examples.reports
        ]
        rows = np.array(tokens, dtype=np.int64).reshape(len(tokens), self._num_tokens)
        texts = _pack([" ".join(tokenise(text)) for text in examples.reports])
        return torch.from_numpy(np.concatenate([rows, texts], axis=1))

    def inputs(
        self, images: Tensor, extras: tuple[Tensor, ...], targets: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the images and the tokens that each next word is predicted from, [B, T - 1]."""
        return (images, *extras, targets[..., : self._num_tokens - 1])

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B] from logits [B, T - 1, V] and targets [B, T + R]."""
        return word_losses(outputs, targets[..., 1 : self._num_tokens], PAD)

    def write(self, model: nn.Module, images: Tensor) -> list[Decoded]:
        """Return the report of each image as beam search writes it."""
        return beam_search(
            cast(ReportModel, model),
            images,
            beam_size=self._section.beam_size,
            max_tokens=self._section.max_words,
            length_penalty=self._section.length_penalty,
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        """Return this batch's counts; see `common.metrics.text` and `common.metrics.findings`.

        Images whose report has no words are left out of everything.
        """
        return self.evaluate_apart(model, batch, (WHOLE,))[0]

    def evaluate_apart(
        self, model: nn.Module, batch: Batch, groups: Sequence[Rows]
    ) -> list[MetricSums]:
        """Return the counts of each group of the batch's images."""
        references = _unpack(batch.targets[:, self._num_tokens :].cpu().numpy())
        chosen = np.flatnonzero([bool(words) for words in references])
        written: dict[int, list[str]] = {}
        losses_B = np.zeros(len(references))
        if len(chosen):
            rows = torch.from_numpy(chosen).to(batch.targets.device)
            inputs = tuple(part[rows] for part in batch.inputs)
            losses = self.loss_per_image(model(*inputs), batch.targets[rows])
            losses_B[chosen] = losses.double().cpu().numpy()
            texts = [self.vocabulary.tokens(text.tokens) for text in self.write(model, inputs[0])]
            written = dict(zip(chosen.tolist(), texts, strict=True))
        kept = [
            [index for index in np.arange(len(references))[rows].tolist() if index in written]
            for rows in groups
        ]
        return [
            self._sums([written[i] for i in own], [references[i] for i in own], losses_B[own])
            for own in kept
        ]

    def _sums(
        self,
        written: Sequence[list[str]],
        references: Sequence[list[str]],
        losses_B: npt.NDArray[np.float64],
    ) -> MetricSums:
        sums = text_sums(written, references, losses_B)
        if self._labeller.names:
            sums["findings"] = confusion_tables(self._findings(references), self._findings(written))
        return sums

    def _findings(self, reports: Sequence[list[str]]) -> npt.NDArray[np.bool_]:
        rows = [self._labeller(words) for words in reports]
        return np.array(rows, dtype=bool).reshape(len(rows), len(self._labeller.names))

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of `evaluate`."""
        num_findings = len(self._labeller.names)
        return TEXT_SHAPES | ({"findings": (num_findings, 2, 2)} if num_findings else {})

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return BLEU, ROUGE-L, METEOR, and precision, recall and F1 of the findings."""
        figures = text_metrics(sums)
        if "findings" in sums:
            figures |= finding_metrics(sums["findings"], self._labeller.names)
        return figures


def _pack(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return texts as rows of UTF-8, eight bytes a number, zeros behind, in steps of `_STEP`."""
    encoded = [text.encode() for text in texts]
    width = max(map(len, encoded), default=0)
    width += -width % _STEP
    joined = b"".join(text.ljust(width, b"\0") for text in encoded)
    return np.frombuffer(joined, dtype=np.int64).reshape(len(texts), width // _BYTES)


def _unpack(rows: npt.NDArray[np.int64]) -> list[list[str]]:
    """Return the words of each row of `_pack`."""
    return [
        np.ascontiguousarray(row).tobytes().rstrip(b"\0").decode().split(" ") if row.any() else []
        for row in rows
    ]
