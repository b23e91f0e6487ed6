"""Sums that nobody can look inside: what both sides of secure aggregation share.

`client.secure` and `server.secure` are the two sides; `docs/adr/0010-secure-aggregation.md` says
what is protected against whom. Nothing here knows Flower.
"""

from medfed.common.secure_sum.context import RoundContext, threshold_of

__all__ = ["RoundContext", "threshold_of"]
