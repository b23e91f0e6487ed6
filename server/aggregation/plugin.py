"""A researcher's own aggregation rule, from a package of their own (ADR 26).

It runs at the coordinator only. Under the privacy of patients it sees updates that have their
noise already, and whatever it makes of them costs no more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from medfed.common.errors import MessageError, StudyError
from medfed.common.plugins.loading import blaming, load_plugin
from medfed.common.state_dicts import StateDict, check_fits
from medfed.common.study import Section, StudyConfig
from medfed.server.aggregation.rows import Floats, RowRule
from medfed.server.aggregation.rule import Rule

Options = TypeVar("Options", bound=Section)


@dataclass(frozen=True)
class RulePlugin(Generic[Options]):
    """A rule; its entry point is in the group `medfed.aggregation`.

    `row_rule` makes one of a function of all updates. A rule is made anew for each round, and keeps
    nothing between rounds: a run that is resumed ends in the same bits. What moves over rounds is
    `federation.algorithm`, which goes on from what any rule returns.

    Attributes:
        options: What `[aggregation.options]` may hold.
        make: From these and the global weights before the round to the round's rule.
    """

    options: type[Options]
    make: Callable[[Options, StateDict], Rule]


def row_rule(
    options: type[Options],
    combine: Callable[[Options, Floats, Floats], tuple[Floats, Mapping[int, str]]],
) -> RulePlugin[Options]:
    """Return the plug-in of a rule that is one function of all updates (`CombineRows`).

    Args:
        options: What `[aggregation.options]` may hold.
        combine: From these, the updates, a row each, and their weights to the combined update, and
            notes by row.
    """
    return RulePlugin(options, lambda own, weights: RowRule(weights, partial(combine, own)))


class PluginRule:
    """One round of a plug-in's rule, held to what every rule has to give.

    Args:
        study: Names the plug-in.
        weights: Global weights before the round.
    """

    def __init__(self, study: StudyConfig, weights: StateDict) -> None:
        loaded = load_plugin(study, "aggregation", RulePlugin)
        self._origin = loaded.origin
        self._weights = weights
        self._num_updates = 0
        with blaming(self._origin):
            self._rule: Rule = loaded.plugin.make(loaded.options, weights)

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._num_updates

    @property
    def notes(self) -> Mapping[str, str]:
        """What the rule says of single sites' updates."""
        with blaming(self._origin):
            return {str(site): str(note) for site, note in self._rule.notes.items()}

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Fold one screened update in.

        Raises:
            UpdateError: The rule does not take it.
            StudyError: The rule failed.
        """
        with blaming(self._origin):
            self._rule.add(update, weight, site)
        self._num_updates += 1

    def apply(self) -> StateDict:
        """Return the new global weights.

        Raises:
            StudyError: The rule failed, or what it made is not a model's weights.
        """
        with blaming(self._origin):
            new = self._rule.apply()
        try:
            check_fits(self._weights, new)
        except MessageError as error:
            raise StudyError(
                f"The {self._origin} gave what is not the model's weights: {error} That is for the "
                "package's authors to mend."
            ) from error
        return new
