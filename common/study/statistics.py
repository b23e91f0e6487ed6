"""`[statistics]`: what the sites say of their training data before the first round."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import PositiveInt, Section


class StatisticsSection(Section):
    """`[statistics]`: numbers of patients and images, class counts, grey levels, image sizes.

    Each site answers as far as its own policy lets it: a data card of it is in the report.
    """

    collect: bool = False
    """Ask the sites for statistics of their training data before the first round."""
    min_count: PositiveInt = 10
    """Without noise: no number about fewer patients than this leaves a site (or than its own
    policy.min_statistics_count, if that is more)."""
    bins: Literal[8, 16, 32, 64, 128, 256] = 64
    """Bins of the histogram of grey levels, over 0..255. Noise is the same on each bin, so few
    bins say more under noise: 16 or 32."""
    noise_multiplier: Annotated[float, Field(ge=0.1, le=1e3, allow_inf_nan=False)] | None = None
    """Noise standard deviation over what one patient changes (differential privacy, charged to the
    ledger as one release); none: no noise, min_count alone protects."""
    classes_per_patient: PositiveInt = 3
    """With noise_multiplier: in so many classes at most is one patient counted."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        if not self.collect and dict(self) != defaults:
            raise ValueError("statistics that nobody collects. Set statistics.collect = true.")
        return self
