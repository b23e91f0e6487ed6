"""A rule: updates count by how far they point where the median of all updates points.

Like FLTrust (Cao et al. 2021, https://arxiv.org/abs/2012.13995, equation 2), with the median of
the sites in place of an update that the server makes from data of its own.
"""

import numpy as np

from medfed.common.plugins import Section
from medfed.server.aggregation.plugin import row_rule


class Options(Section):
    """`[aggregation.options]`."""

    least: float = 0.0
    """Cosine with the median up to which an update counts for nothing."""


def combine(
    options: Options, updates: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the combined update [values] of updates [sites, values]; and whom it leaves out."""
    median = np.median(updates, axis=0)
    norms = np.linalg.norm(updates, axis=1) * np.linalg.norm(median)
    trust = np.maximum(updates @ median / np.maximum(norms, 1e-12) - options.least, 0.0)
    left_out = {site: "points elsewhere" for site in np.flatnonzero(trust == 0).tolist()}
    return trust @ updates / max(trust.sum(), 1e-12), left_out


agreement = row_rule(Options, combine)
