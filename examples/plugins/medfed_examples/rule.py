"""A rule: updates count by how far they point where the median of all updates points.

Like FLTrust (Cao et al. 2021, https://arxiv.org/abs/2012.13995, equation 2), with the median of
the sites in place of an update that the server makes from data of its own.
"""

import numpy as np

from medfed.common.plugins import Section
from medfed.common.state_dicts import StateDict
from medfed.server.aggregation.plugin import RulePlugin
from medfed.server.aggregation.rule import moved


class Options(Section):
    """`[aggregation.options]`."""

    least: float = 0.0
    """Cosine with the median up to which an update counts for nothing."""


class Agreement:
    """One round: keeps every update, then combines them."""

    def __init__(self, options: Options, weights: StateDict) -> None:
        self._least, self._weights = options.least, weights
        self._updates: dict[str, StateDict] = {}
        self.notes: dict[str, str] = {}

    @property
    def num_updates(self) -> int:
        """How many updates were kept."""
        return len(self._updates)

    def add(self, update: StateDict, weight: int, site: str) -> None:
        """Keep one update."""
        self._updates[site] = update

    def apply(self) -> StateDict:
        """Return the new global weights."""
        sites = sorted(self._updates)  # a fixed order: float addition is not associative
        rows = np.stack([_flat(self._updates[site]) for site in sites])
        median = np.median(rows, axis=0)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(median)
        trust = np.maximum(rows @ median / np.maximum(norms, 1e-12) - self._least, 0.0)
        self.notes = {s: "points elsewhere" for s, t in zip(sites, trust, strict=True) if t == 0}
        mean = trust @ rows / max(trust.sum(), 1e-12)
        update, start = {}, 0
        for name, array in self._weights.items():
            update[name] = mean[start : start + array.size].reshape(array.shape)
            start += array.size
        return moved(self._weights, update)


def _flat(update: StateDict) -> np.ndarray:
    return np.concatenate([array.reshape(-1).astype(np.float64) for array in update.values()])


agreement = RulePlugin(Options, Agreement)
