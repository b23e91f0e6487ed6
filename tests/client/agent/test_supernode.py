"""The SuperNode's waits: short while messages come, Flower's own once none has for long."""

import inspect
import re

import pytest
from flwr.supernode import start_client_internal

from medfed.client.agent import supernode


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(supernode.time, "sleep", waits.append)
    monkeypatch.setattr(supernode._Impatient, "idle", 0)
    return waits


def test_waits_are_short_at_first_and_long_when_idle_and_short_again_after_a_message(
    slept: list[float],
) -> None:
    for _ in range(201):
        supernode._Impatient.sleep(3)
    assert slept[0] == pytest.approx(0.6)
    assert slept[199] == pytest.approx(0.6)
    assert slept[200] == pytest.approx(3.0)
    supernode._Impatient.sleep(0.5)
    supernode._Impatient.sleep(3)
    assert slept[-2:] == pytest.approx([0.1, 0.6])


def test_flowers_loop_uses_nothing_of_time_but_the_waits_that_are_told_apart() -> None:
    used = re.findall(r"\btime\.(\w+)\(([^)]*)\)", inspect.getsource(start_client_internal))
    assert used
    assert {name for name, _ in used} == {"sleep"}
    assert {float(seconds) for _, seconds in used} == {3.0, 0.5}
