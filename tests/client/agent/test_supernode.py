"""The SuperNode's waits: short while messages come, Flower's own once none has for long."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import Status
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

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


def test_message_of_a_run_that_ends_on_its_way_leaves_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flower's own code to receive a message; the coordinator stops the run half way."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    objects = ObjectStoreFactory()
    state, store = NodeStateFactory(objects).state(), objects.store()
    state.set_node_id(7)
    state.store_run(Run.create_empty(1))
    message = Message(RecordDict({"c": ConfigRecord({"a": 1})}), 7, "train", ttl=60)
    message.metadata.__dict__.update(_run_id=1, _src_node_id=1)
    message.metadata.__dict__["_message_id"] = message.object_id
    tree = get_object_tree(message)

    def ended(*_: object) -> bytes:
        raise RunNotRunningException

    @contextmanager
    def connected(*_: object) -> Iterator[tuple[Any, ...]]:
        yield (7, lambda: (remove_content_from_message(message), tree), *[ended] * 6)

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(supernode, "http_request_response", connected)
    keys = generate_key_pairs()
    with supernode._connection("localhost:1", False, None, keys, None, None) as connection:
        _, receive, _, get_run, get_fab, pull_object, _, confirm = connection
        run = start_client_internal._pull_and_store_message(
            state, store, {}, receive, get_run, get_fab, pull_object, confirm, None
        )
    assert run is None
    [task] = state.get_tasks()
    assert task.status.status == Status.FINISHED
    assert state.get_messages_legacy() == []
