"""`[task]`: what the model predicts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import PositiveInt, Section, Sorted
from medfed.common.study.plugins import PluginOptions

_MAX_STRUCTURES = 8


class ReportSection(Section):
    """`[task.report]`: how reports are written and what they are judged by."""

    max_words: PositiveInt = 60
    """Longest report that is learned and written, words and full stops."""
    vocabulary: str = ""
    """File with one word a line that everyone may know; empty: the sites agree on the words
    (each releases only what its own policy lets out)."""
    vocabulary_size: Annotated[int, Field(gt=0, le=100_000)] = 2000
    """Most words of an agreed vocabulary."""
    min_patients: PositiveInt = 5
    """A site names a word only if so many of its patients' reports hold it."""
    words_per_patient: Annotated[int, Field(gt=0, le=1000)] = 60
    """With words_noise_multiplier: most distinct words that one patient counts for."""
    words_noise_multiplier: Annotated[float, Field(ge=0.1, le=1e3)] | None = None
    """Noise on the words' counts (differential privacy, charged to the ledger); none: no noise,
    min_patients alone decides."""
    words_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """With words_noise_multiplier: the part of delta that choosing words costs."""
    beam_size: PositiveInt = 3
    """Sentences that beam search keeps in view; 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=0, le=5)] = 0.7
    """Exponent of the length normalisation; 0 favours short reports."""
    findings: Annotated[dict[str, tuple[str, ...]], Sorted] = Field(default_factory=dict)
    """Phrases by finding: a report mentions the finding if it holds one of them, not negated."""


class TaskSection(Section):
    """`[task]`: what the model predicts."""

    type: Literal["classification", "segmentation", "report"] = "classification"
    """classification: labels of an image. segmentation: a mask. report: its text."""
    mode: Literal["multiclass", "multilabel", "ordinal"] = "multiclass"
    """Classification: exactly one class; any number; or grades in order. Segmentation: structures
    that exclude one another (multiclass), or regions that overlap (multilabel)."""
    classes: tuple[str, ...] = ()
    """The label set in the order of the model's outputs; a segmentation's structures."""
    loss: Literal["auto", "cross_entropy", "dice", "dice_ce"] = "auto"
    """Segmentation: auto is dice_ce, soft Dice plus cross entropy. The others: cross entropy."""
    report: ReportSection = ReportSection()
    plugin: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")] = ""
    """A plug-in whose loss, figures and prediction take the place of medfed's own. What images are
    labelled with stays what type says."""
    options: PluginOptions = Field(default_factory=dict)
    """The plug-in's own settings."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes holds a name twice. Name every class once.")
        _CHECKS[self.type](self)
        if self.type != "report" and self.report != ReportSection():
            raise ValueError(f'task.report with type = "{self.type}" has no effect. Remove it.')
        if self.type != "segmentation" and self.loss not in ("auto", "cross_entropy"):
            raise ValueError(
                f'loss = "{self.loss}" is for segmentation, the task is {self.type}. Remove it.'
            )
        return self

    @property
    def label_names(self) -> tuple[str, ...]:
        """What an image can be labelled with: classes, structures, or a report's findings."""
        return tuple(self.report.findings) if self.type == "report" else self.classes

    @property
    def one_label(self) -> bool:
        """Whether an image has exactly one label, against any number of them."""
        return self.type == "classification" and self.mode != "multilabel"


def _check_classification(task: TaskSection) -> None:
    if len(task.classes) < 2:
        raise ValueError(
            f"expected at least 2 classes, got {len(task.classes)}. "
            'Name them all, e.g. classes = ["normal", "pneumonia"].'
        )


def _check_segmentation(task: TaskSection) -> None:
    if not task.classes:
        raise ValueError('expected the structures as classes, e.g. classes = ["lesion"], got none.')
    if task.mode == "ordinal":
        raise ValueError('mode = "ordinal" is for classification. Set "multiclass".')
    if task.mode == "multilabel" and len(task.classes) > _MAX_STRUCTURES:
        raise ValueError(
            f"expected at most {_MAX_STRUCTURES} overlapping regions, got {len(task.classes)}."
        )


def _check_report(task: TaskSection) -> None:
    if task.mode != "multiclass":
        raise ValueError(f'mode = "{task.mode}" has no effect on reports. Remove it.')
    if task.classes:
        raise ValueError("classes has no effect on reports. Name task.report.findings instead.")


_CHECKS = {
    "classification": _check_classification,
    "segmentation": _check_segmentation,
    "report": _check_report,
}
