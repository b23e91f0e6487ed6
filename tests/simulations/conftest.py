"""A study small enough to run in seconds, and the `medfed` command as a user runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medfed.cli import main

TINY = """
[study]
name = "tiny"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 3
local_steps = 3
learning_rate = 0.1
[federation]
min_sites = 2
[privacy]
noise_multiplier = 1.0
sample_rate = 0.3
expected_batch_size = 8
images_per_patient = 2
target_delta = 1e-3
[simulation]
dataset = "phantom"
max_epsilon = 50
arms = ["federated"]
[simulation.phantom]
num_patients = 120
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The tiny study's file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared stores, shared by the tests of a session."""
    return tmp_path_factory.mktemp("cache")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Medfed = Callable[..., Done]


@pytest.fixture
def medfed(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Medfed:
    """Run `medfed ARGUMENTS` in an empty folder, in this process: its imports cost seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFED_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, code: int = 0) -> Done:
        monkeypatch.setattr("sys.argv", ["medfed", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        got = ended.value.code or 0
        assert got == code, captured.out + captured.err
        return Done(int(got), captured.out, captured.err)

    return run
