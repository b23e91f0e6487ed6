"""A study small enough to run in seconds, and the `medfed` command as a user runs it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from medfed.cli import main
from medfed.common.study_file import load_study
from medfed.simulations.study import Options, prepare_run, run_study, start_study

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


@pytest.fixture(scope="module")
def prepared_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Makes a prepared run of a study's text and overrides; a module's runs share their stores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFED_CACHE", str(tmp_path_factory.mktemp("cache")))

        def make(text: str, overrides: Sequence[str] = ()) -> Path:
            parent = tmp_path_factory.mktemp("run")
            (parent / "study.toml").write_text(text)
            study = load_study(parent / "study.toml", list(overrides))
            start_study(study, parent / "run", None, Options())
            prepare_run(parent / "run")
            return parent / "run"

        yield make


@pytest.fixture(scope="module")
def serial(prepare: Callable[..., Path]) -> Callable[..., Path]:
    """Runs what the module's `prepare` makes to its end, one site after the other; each once."""

    @functools.cache
    def run(*overrides: str, **more: str) -> Path:
        folder = prepare(*overrides, **more)
        run_study(folder, Options(workers=1))
        return folder

    return run
