"""What the tests of the server share, its helpers among them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Pytest's importlib mode leaves a test's own folder out of the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks often at who is there, and waits for tenths of seconds only."""
    from flwr.supercore.task_identity import TaskIdentity

    monkeypatch.setattr("medfed.server.presence._EVERY_S", 0.05)
    monkeypatch.setattr("medfed.server.attendance._LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("medfed.server.joining._JOIN_GRACE_S", 0.3)
    monkeypatch.setattr("medfed.server.joining._ASK_AGAIN_S", 0.5)
    monkeypatch.setattr("medfed.server.exchange._JUDGE_EVERY_S", 0.05)
    monkeypatch.setattr("medfed.server.pulling._LONGEST_PAUSE_S", 0.05)
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run folder (`dying.prepare`) of a study with overrides; pictures are made once."""
    from dying import prepare

    cache = tmp_path_factory.mktemp("cache")

    def prepare_run(*overrides: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEDFED_CACHE", str(cache))
            return prepare(tmp_path_factory.mktemp("run"), *overrides)

    return prepare_run
