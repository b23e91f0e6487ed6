"""Norm bounding: an update longer than a bound is scaled down to it, then any rule combines it.

Bounds what one site can add to the model in one round; the direction stays its own. Not privacy:
the site-level mechanism clips by itself (`site_level`).

Reference: Sun et al. 2019, https://arxiv.org/abs/1911.07963
"""

from collections.abc import Mapping

import numpy as np

from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.clipping import update_norm
from medfed.server.aggregation.robust import weights_of
from medfed.server.aggregation.rule import Rule


class NormBounded:
    """One round of `rule` on updates of bounded length.

    Args:
        rule: Combines them.
        max_norm: L2 bound over all arrays together but counters, which stay as they are.
    """

    def __init__(self, rule: Rule, max_norm: float) -> None:
        self._rule = rule
        self._max_norm = max_norm
        self._scaled: dict[str, str] = {}

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return self._rule.num_updates

    @property
    def notes(self) -> Mapping[str, str]:
        """After `apply`: by site, from which norm its update was scaled, and the rule's own."""
        own = self._rule.notes
        names = [*self._scaled, *(name for name in own if name not in self._scaled)]
        return {
            name: "; ".join(note for note in (self._scaled.get(name), own.get(name)) if note)
            for name in names
        }

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Scale one screened update if it is too long, and fold it in.

        Raises:
            UpdateError: The update cannot be used; nothing was added.
        """
        names = weights_of(update)
        norm = update_norm({name: update[name] for name in names})
        if norm > self._max_norm:
            scale = self._max_norm / norm
            shorter = {
                name: (update[name].astype(np.float64) * scale).astype(update[name].dtype)
                for name in names
            }
            update = {name: shorter.get(name, array) for name, array in update.items()}
        self._rule.add(update, weight, site)
        if norm > self._max_norm:
            self._scaled[site] = f"scaled from norm {norm:.4g} to {self._max_norm:.4g}"

    def apply(self) -> StateDict:
        """Return the new global weights, each in its own type."""
        return self._rule.apply()
