"""Where a report model looked for each word that it wrote.

Shapes: one image; T words, *G cells of the encoder's grid, *S spatial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfed.common.metrics.findings import FindingLabeller
from medfed.common.tasks import Report

_SMOOTH = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class WordExplanation:
    """A word, and where the model looked for it.

    Attributes:
        word: As written.
        attention: float32 *S in the image's size, 0 to 1; one scale for all words of a report, on
            which 1 is the strongest attention to any place.
    """

    word: str
    attention: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReportExplanation:
    """A written report.

    Attributes:
        text: As one reads it.
        words: In order, sentence ends included.
        findings: Whether the report mentions each of the study's findings.
        grid: Cells that attention chooses among.
    """

    text: str
    words: tuple[WordExplanation, ...]
    findings: dict[str, bool]
    grid: tuple[int, ...]


def explain_report(
    model: nn.Module, task: Report, images: Tensor, findings: Mapping[str, Sequence[str]]
) -> ReportExplanation:
    """Write the report of one image and say where the model looked for each word.

    Args:
        model: In evaluation mode.
        task: Its vocabulary and how it searches.
        images: [1, C, *S].
        findings: The study's findings with their phrases.
    """
    with torch.inference_mode():
        [written] = task.write(model, images)
    words = task.vocabulary.tokens(written.tokens)
    maps = upsampled(written.attention, tuple(images.shape[2:]))
    labeller = FindingLabeller(findings)
    return ReportExplanation(
        text=task.vocabulary.decode(written.tokens),
        words=tuple(WordExplanation(*pair) for pair in zip(words, maps, strict=True)),
        findings=dict(zip(labeller.names, map(bool, labeller(words)), strict=True)),
        grid=tuple(written.attention.shape[1:]),
    )


def upsampled(attention_TG: Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return attention [T, *G] in an image's size, [T, *S]; the strongest of all becomes 1."""
    if not len(attention_TG):
        return np.zeros((0, *shape), dtype=np.float32)
    scaled = (attention_TG / attention_TG.amax())[:, None].float()
    maps = F.interpolate(scaled, size=shape, mode=_SMOOTH[len(shape)], align_corners=False)
    return maps[:, 0].numpy()
