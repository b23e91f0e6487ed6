"""Rules of the house that no linter holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("common", "client", "server", "simulations", "src/medfed/cli", "scripts")
    for path in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"], ["study", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom medfed.cli import main\n"
        f"sys.argv = ['medfed', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'flwr', 'numpy', 'matplotlib', 'opacus', 'monai'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "HEAVY []" in done.stdout
    assert "Usage" in done.stdout


def test_no_pickle_anywhere() -> None:
    unsafe = re.compile(
        r"import c?pickle|cloudpickle|torch\.load\((?!.*weights_only=True)|allow_pickle=True"
    )
    found = [str(p) for p in SOURCES if unsafe.search(p.read_text(encoding="utf-8"))]
    assert found == []


def test_modules_stay_readable() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in SOURCES
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
