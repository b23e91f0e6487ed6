"""`[aggregation]`: how the server combines updates, and what one site may do to the model."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Name, PositiveInt, Section
from medfed.common.study.plugins import PluginOptions

_KRUM = ("krum", "multi_krum")
RULES = ("mean", "median", "trimmed_mean", *_KRUM, "geometric_median")


class AggregationSection(Section):
    """`[aggregation]`: how the server combines the sites' updates."""

    rule: Name = Field(default="mean", examples=list(RULES))
    """mean: by federation.weighting; one site can move it anywhere. The others hold against
    num_byzantine sites that send what they like: median and trimmed_mean value by value, krum (the
    update closest to the others), multi_krum (the mean of those), geometric_median. They take every
    site once, and the server holds a round's updates in memory together. Any other name is a
    plug-in's."""
    options: PluginOptions = Field(default_factory=dict)
    """A plug-in's own settings."""
    num_byzantine: PositiveInt | None = None
    """Sites against which the rule has to hold; required with every rule but mean. It needs
    2 * num_byzantine + 1 updates in every round, krum and multi_krum 2 more."""
    num_selected: PositiveInt | None = None
    """multi_krum: how many updates are averaged; unset for all but num_byzantine."""
    max_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Norm bounding, with any rule: an update with a larger L2 norm is scaled down to this one
    before it is combined; 0 is off. Counters are no part of the norm."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.robust and self.num_byzantine is None:
            raise ValueError(
                f'rule = "{self.rule}" without num_byzantine: how many sites it has to hold '
                "against decides what it leaves out. Set aggregation.num_byzantine = 1, or more."
            )
        if self.is_plugin and self.num_byzantine is not None:
            raise ValueError(
                f'num_byzantine = {self.num_byzantine} with rule = "{self.rule}", which is none of '
                f"{', '.join(RULES)}, and so a plug-in's. Correct it, or put what the plug-in "
                "takes into aggregation.options."
            )
        if not self.robust and self.num_byzantine is not None:
            raise ValueError(
                f'num_byzantine = {self.num_byzantine} with rule = "mean", which holds against '
                'none. Set aggregation.rule = "trimmed_mean", or remove num_byzantine.'
            )
        if self.num_selected is not None and self.rule != "multi_krum":
            raise ValueError(
                f'num_selected = {self.num_selected} with rule = "{self.rule}": only multi_krum '
                "selects several. Remove num_selected."
            )
        return self

    @property
    def robust(self) -> bool:
        """Whether the rule holds against hostile sites, takes every site once, and holds all."""
        return self.rule != "mean" and not self.is_plugin

    @property
    def is_plugin(self) -> bool:
        """Whether the rule is not one of medfed's own; what it holds against is not known then."""
        return self.rule not in RULES

    @property
    def min_updates(self) -> int:
        """Updates without which the rule's guarantee does not hold: fewer are not combined."""
        hostile = self.num_byzantine or 0
        least = 2 * hostile + (3 if self.rule in _KRUM else 1)
        return max(least, (self.num_selected or 0) + hostile)
