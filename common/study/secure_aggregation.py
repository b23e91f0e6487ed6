"""`[secure_aggregation]`: the server sees the sum of the sites' updates and none of them alone."""

from typing import Annotated, Literal

from pydantic import Field

from medfed.common.study.base import PositiveFloat, Section


class SecureAggregationSection(Section):
    """`[secure_aggregation]`: masks that cancel in the sum."""

    enabled: bool = False
    """Mask every update. The sum is exact to the grid that max_value and 32 bits leave."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 2 / 3
    """Share of the sites of a round that must be there to the end; with fewer the round is lost.
    Above one half: two halves of the sites must not be told different things."""
    max_value: PositiveFloat = 4.0
    """Largest weight change that an update can hold; larger ones are cut. Smaller means finer."""
    distributed_noise: Literal["none", "discrete_gaussian"] = "none"
    """With privacy.unit = "site": each site adds its share of the noise before it masks, so that
    the sum is private against the server too."""
    honest_sites: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """With distributed_noise: share of the sites whose noise is counted on. The others may leave
    theirs out or know it; each site's share is larger for it."""
