"""What the page says of a written report."""

from medfed.common.tasks import Report
from medfed.simulations.explaining.load import Examination, Trained, model_inputs
from medfed.simulations.explaining.page import Content, Plate
from medfed.simulations.explaining.plates import as_seen, map_picture, plain_picture
from medfed.simulations.explaining.report import ReportExplanation, explain_report
from medfed.simulations.reporting.tables import Table

_SHOWS = (
    "The report as beam search wrote it, and for each word the places of the image that the "
    "decoder read when it chose that word.",
    "All words share one scale: a word without a bright place was written from the image as a "
    "whole, or from the words before it.",
)


def about_reports(trained: Trained, task: Report, examination: Examination) -> Content:
    """Explain the report of one examination."""
    images = model_inputs(examination, trained.study)[0]
    explained = explain_report(trained.model, task, images, trained.study.task.report.findings)
    return Content(
        title="Where it looked for each word",
        headline=_headline(explained),
        plates=(Plate("image", plain_picture(examination), "The image", as_seen(examination)),),
        words=tuple(
            Plate(
                f"word-{number:02d}",
                map_picture(examination, word.attention, small=True),
                word.word,
            )
            for number, word in enumerate(explained.words, start=1)
        ),
        scale=("not read", "read most, of all places and words"),
        shows=_SHOWS,
        hides=(
            "Why a word was chosen. Attention says what was read, not what it was taken for, and "
            "words such as “the” and “is” follow from habit of language.",
            f"Anything finer than the encoder's grid of {' x '.join(map(str, explained.grid))} "
            "cells: smooth edges come from enlarging it.",
            "Whether the report is true. Such models write fluent sentences about what is not "
            "there, and leave out what is.",
        ),
        table=_table(explained),
        text=explained.text or "(no words)",
        facts={
            "report": explained.text,
            "words": [word.word for word in explained.words],
            "findings": explained.findings,
            "grid": list(explained.grid),
        },
    )


def _headline(explained: ReportExplanation) -> str:
    mentioned = [name for name, there in explained.findings.items() if there]
    if mentioned:
        return "The report mentions " + ", ".join(mentioned)
    if explained.findings:
        return f"The report mentions none of {len(explained.findings)} findings"
    return f"A report of {len(explained.words)} words"


def _table(explained: ReportExplanation) -> Table | None:
    if not explained.findings:
        return None
    rows = tuple((name, "yes" if there else "no") for name, there in explained.findings.items())
    return Table(("Finding", "Mentioned"), rows)
