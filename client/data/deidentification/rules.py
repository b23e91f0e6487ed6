"""What a site chose: the options of PS3.15 and what becomes of burnt-in text."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from medfed.client.data.deidentification.profile import Option
from medfed.common.study.base import Section

_ELSEWHERE = {
    Option.CLEAN_PIXEL_DATA: 'It is not an option of its own here: set burnt_in = "mask".',
    Option.CLEAN_VISUAL_FEATURES: (
        "medfed removes no faces: run a defacing tool on head scans first, and leave it out here."
    ),
}


class Rules(Section):
    """The `[deidentify]` table of a data set file. Without options: the Basic Profile alone."""

    options: tuple[Option, ...] = (Option.RETAIN_LONGITUDINAL_MODIFIED,)
    """Options of PS3.15 E.3. Modified dates keep the days between a patient's studies."""
    burnt_in: Literal["refuse", "mask", "keep"] = "refuse"
    """A picture with text in it is refused, the text is painted over, or nobody looks: keep is for
    a site that knows that its pictures name nobody."""
    issuer_of_patient_id: bool = False
    """Whether equal ids of different issuers are different patients."""
    max_shift_days: Annotated[int, Field(ge=30, le=36500)] = 365
    """A patient's dates move back by 1 to this many days."""

    @field_validator("options")
    @classmethod
    def _offered(cls, options: tuple[Option, ...]) -> tuple[Option, ...]:
        for option, instead in _ELSEWHERE.items():
            if option in options:
                raise ValueError(f"{option} cannot be listed. {instead}")
        return tuple(sorted(set(options)))

    @model_validator(mode="after")
    def _one_kind_of_dates(self) -> "Rules":
        dates = {Option.RETAIN_LONGITUDINAL_FULL, Option.RETAIN_LONGITUDINAL_MODIFIED}
        if dates <= set(self.options):
            raise ValueError(
                "Expected one of retain_longitudinal_full and retain_longitudinal_modified, got "
                "both. Modified dates are the safer choice."
            )
        return self

    @property
    def chosen(self) -> frozenset[Option]:
        """The options as a set."""
        return frozenset(self.options)
