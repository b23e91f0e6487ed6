"""Flower's own SuperNode, less patient while a run is under way.

Its loop asks for messages every 3 s and looks for a reply every 0.5 s, both written into the code.
A round has at least two messages a site, so these waits are most of what a small round costs
(docs/benchmarks.md). Here the same program runs with a fifth of each wait, until no message has
come for a while: a coordinator with many idle sites should not be kept busy by them.
"""

import time

from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

_SHARE = 0.2
_LONG_S = 1.0
_IDLE_WAITS = 200  # two minutes of short ones


class _Impatient:
    """The `time` module as Flower's loop sees it."""

    idle = 0

    @classmethod
    def sleep(cls, seconds: float) -> None:
        # The long wait is that for a message, the short one that for the reply to one.
        cls.idle = cls.idle + 1 if seconds > _LONG_S else 0
        time.sleep(seconds * (_SHARE if cls.idle <= _IDLE_WAITS else 1.0))


def main() -> None:
    """Run `flower-supernode` with this process' arguments."""
    # The loop uses nothing else of the module; a test would notice.
    setattr(start_client_internal, "time", _Impatient)  # noqa: B010 - not exported
    flower_supernode()


if __name__ == "__main__":
    main()
