"""Flower's own SuperNode, less patient.

Its loop asks for messages every 3 s and looks for a reply every 0.5 s, both written into the code.
A round has at least two messages a site, so these waits are most of what a small round costs
(docs/benchmarks.md). Here the same program runs with a fifth of each wait; nothing else differs.
"""

import time

from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

_SHARE = 0.2


class _Impatient:
    """The `time` module as Flower's loop sees it."""

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds * _SHARE)


def main() -> None:
    """Run `flower-supernode` with this process' arguments."""
    # The loop uses nothing else of the module; a test would notice.
    setattr(start_client_internal, "time", _Impatient)  # noqa: B010 - not exported
    flower_supernode()


if __name__ == "__main__":
    main()
