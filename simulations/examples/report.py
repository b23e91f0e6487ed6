"""Examples of report generation: the true text, the written one, and the findings of both."""

import re
from typing import Any

from torch import nn

from medfed.client.batches import BatchLoader, Positions
from medfed.client.data.site_data import ImageSet
from medfed.common.metrics.findings import FindingLabeller
from medfed.common.metrics.text import rouge_l
from medfed.common.study import StudyConfig
from medfed.common.tasks import Report
from medfed.common.text import tokenise
from medfed.simulations.examples.pictures import shown_image, view_pictures
from medfed.simulations.explaining.pictures import side_by_side

# Where a reader sees a sentence end; findings are counted on the whole text.
_ENDS = re.compile(r"(?<=[.!?;])\s+|\n\s*\n")


def report_rows(
    model: nn.Module,
    task: Report,
    loader: BatchLoader,
    data: ImageSet,
    chosen: Positions,
    study: StudyConfig,
) -> list[dict[str, Any]]:
    """Return one row an image: picture, note, true, written, findings, rouge_l.

    true and written are sentences, each with the findings that it mentions; findings says of each
    that either text mentions whether it was found, missed or invented.
    """
    if not len(chosen):
        return []
    labeller = FindingLabeller(study.task.report.findings)
    reports = task.write(model, loader.evaluation_batch(chosen).inputs[0])
    rows = []
    for position, true, report in zip(
        chosen.tolist(), data.examples(chosen).reports, reports, strict=True
    ):
        written = task.vocabulary.decode(report.tokens)
        shown = shown_image(data, position, study.data)
        rows.append(
            {
                "picture": side_by_side(view_pictures(shown, study.data)),
                "note": shown.note,
                "true": marked_sentences(true, labeller),
                "written": marked_sentences(written, labeller),
                "findings": compared_findings(true, written, labeller),
                "rouge_l": round(rouge_l(tokenise(written), tokenise(true)), 4),
            }
        )
    return rows


def marked_sentences(text: str, labeller: FindingLabeller) -> list[dict[str, Any]]:
    """Return the sentences of `text`, each with the findings that it mentions."""
    sentences = [" ".join(part.split()) for part in _ENDS.split(text)]
    return [
        {"text": sentence, "findings": _mentioned(sentence, labeller)}
        for sentence in sentences
        if sentence
    ]


def compared_findings(true: str, written: str, labeller: FindingLabeller) -> dict[str, str]:
    """Return found, missed or invented for each finding that either text mentions."""
    there, said = _mentioned(true, labeller), _mentioned(written, labeller)
    states = {(True, True): "found", (True, False): "missed", (False, True): "invented"}
    return {
        name: states[name in there, name in said]
        for name in labeller.names
        if name in there or name in said
    }


def _mentioned(text: str, labeller: FindingLabeller) -> list[str]:
    found = labeller(tokenise(text))
    return [name for name, there in zip(labeller.names, found, strict=True) if there]
