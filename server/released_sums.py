"""What sites released of an evaluation, added up as it comes.

Sites differ in what their policies release. Figures need the sum over those that released the same,
not each site's own: with thousands of sites that is the difference between one and thousands of
arrays in memory and on disk.
"""

from collections.abc import Mapping
from typing import Any

from medfed.common.metrics import MetricSums, add_sums


class ReleasedSums:
    """Sums of one evaluation, by what of them was released."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], MetricSums] = {}
        self._sites: dict[tuple[str, ...], list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._totals)

    def add(self, site: str, sums: MetricSums) -> None:
        """Add what one site released; integers, so that the order does not matter."""
        names = tuple(sorted(sums))
        total = self._totals.get(names)
        self._totals[names] = add_sums([sums] if total is None else [total, sums])
        self._sites.setdefault(names, []).append(site)

    @property
    def parts(self) -> list[MetricSums]:
        """The sums of those that released the same: what `pooled_metrics` takes."""
        return [self._totals[names] for names in sorted(self._totals)]

    def table(self) -> list[Mapping[str, Any]]:
        """Return for JSON, of each group of sites that released the same, who and what."""
        return [
            {
                "sites": sorted(self._sites[names]),
                "sums": {name: total[name].tolist() for name in names},
            }
            for names, total in sorted(self._totals.items())
        ]
