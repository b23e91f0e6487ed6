"""`[semi_supervised]`: what a site does with training images that nobody has labelled."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.augmentation import AugmentationSection
from medfed.common.study.base import PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig

# Numbers that belong to one method each, and what they are unless they are set.
_PARAMETERS = {"pseudo_labels": {"threshold": 0.95}, "mean_teacher": {"decay": 0.99}}


class SemiSupervisedSection(Section):
    """`[semi_supervised]`: training images without labels help, by what the model says of them.

    A guess is made of one view of an image (`[augmentation]`), and learned on another
    (`[semi_supervised.strong]`).
    """

    method: Literal["none", "pseudo_labels", "mean_teacher"] = "none"
    """none: only labelled images train. pseudo_labels: the model's own answers, where it is sure of
    them, are taken for labels. mean_teacher: the model's answers are drawn to those of a running
    average of itself."""
    weight: PositiveFloat = 1.0
    """Of the mean loss on guesses against the mean loss on labels."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """pseudo_labels: least probability of an answer that counts as sure (0.95 unless set)."""
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """mean_teacher: share of the old average that a step leaves (0.99 unless set). The average
    starts each round from the global model, so no site has to keep it."""
    batch_size: PositiveInt | None = None
    """Images without labels in a step, without DP; training.batch_size unless set."""
    ramp_up_rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds in which `weight` grows from almost nothing: early guesses are poor."""
    strong: AugmentationSection = AugmentationSection()
    """How the view that a guess is learned on differs from the image; nothing set: as
    `[augmentation]` says, drawn anew."""

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, table: Any) -> Any:
        """Write the method's defaults out, so that reports and digests state them."""
        method = table.get("method") if isinstance(table, dict) else None
        if not isinstance(method, str) or method not in _PARAMETERS:
            return table
        stated = {name: value for name, value in table.items() if value is not None}
        return {**_PARAMETERS[method], **stated}

    @model_validator(mode="after")
    def _own_parameters(self) -> Self:
        for owner, parameters in _PARAMETERS.items():
            for name in parameters:
                if getattr(self, name) is not None and self.method != owner:
                    raise ValueError(
                        f'{name} with method = "{self.method}": it is for "{owner}". Remove it.'
                    )
        return self


def check_semi_supervised(study: "StudyConfig") -> None:
    """Refuse what guessing labels does not go with.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    section = study.semi_supervised
    if section.method == "none":
        return  # The rest may stand: a sweep over methods has none among them.
    asked = f'semi_supervised.method = "{section.method}"'
    if study.task.type != "classification":
        raise ValueError(
            f"{asked} is for classification, the task is {study.task.type}: a guess about one view "
            "of an image holds for another only where nothing in it has a place. Remove it."
        )
    if study.task.plugin:
        raise ValueError(
            f'{asked} with task.plugin = "{study.task.plugin}": labels and guesses share one loss, '
            "medfed's own, and the plug-in's would not be used. Remove one of the two."
        )
    if study.federation.has_personal_models:
        raise ValueError(
            f'{asked} with federation.algorithm = "{study.federation.algorithm}": a personal model '
            "is trained on labels alone. Remove one of the two."
        )
    if section.strong.multiplicity > 1:
        raise ValueError(
            "semi_supervised.strong.multiplicity above 1: versions of an image are counted in "
            "augmentation.multiplicity. Remove it."
        )
    if section.batch_size is not None and study.privacy.at_sites:
        raise ValueError(
            f'semi_supervised.batch_size with privacy.unit = "{study.privacy.unit}": patients '
            "without labels are drawn at privacy.sample_rate like all others. Remove it."
        )
