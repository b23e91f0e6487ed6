"""The package of examples/plugins as a user installs it, and packages made up for one test."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "plugins"


@pytest.fixture(scope="session")
def installed_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put the examples; it needs no index for them."""
    source = tmp_path_factory.mktemp("source") / "plugins"
    shutil.copytree(EXAMPLES, source)  # a build leaves files beside what it builds
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def examples(installed_examples: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """medfed-examples 0.1.0, installed while the test runs."""
    monkeypatch.syspath_prepend(str(installed_examples))
    yield installed_examples
    for name in [name for name in sys.modules if name.partition(".")[0] == "medfed_examples"]:
        del sys.modules[name]


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package on the path as pip leaves it: a module and what its dist-info says."""
    modules = []

    def package(name: str, code: str, *entries: str, version: str = "1.0") -> None:
        module = name.replace("-", "_")
        modules.append(module)
        folder = tmp_path / "site-packages" / name
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("\n".join(entries) + "\n")
        monkeypatch.syspath_prepend(str(folder))

    yield package
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty patients' pictures in a folder a class: bright below, or not."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for patient in range(40):
        label = ("effusion", "normal")[patient % 2]
        image = rng.integers(40, 90, (16, 16)).astype(np.uint8)
        if label == "effusion":
            image[10:] += 120
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / label / f"p{patient:02d}_1.png")
    return folder
