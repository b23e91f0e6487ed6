"""How often a coordinator looks who is connected."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from medfed.server.presence import Presence


@pytest.mark.parametrize(("takes_s", "not_after_s", "after_s"), [(0.001, 0.9, 1.1), (0.1, 4, 5.1)])
def test_looking_takes_a_fiftieth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch, takes_s: float, not_after_s: float, after_s: float
) -> None:
    clock, looks = [100.0], []

    def get_nodes() -> list[Any]:
        looks.append(clock[0])
        clock[0] += takes_s
        return []

    monkeypatch.setattr("medfed.server.presence.time", SimpleNamespace(monotonic=lambda: clock[0]))
    presence = Presence(cast(Any, SimpleNamespace(get_nodes=get_nodes)))
    presence.look()
    looked = clock[0]
    for wait_s, count in ((not_after_s, 1), (after_s, 2)):
        clock[0] = looked + wait_s
        presence.look()
        assert len(looks) == count
