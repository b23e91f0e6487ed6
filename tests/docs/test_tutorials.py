"""Every command and every line of code of docs/tutorials, in an empty folder, as a reader would."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.cli import main

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def blocks(tutorial: str, kind: str) -> list[str]:
    text = (ROOT / "docs" / "tutorials" / f"{tutorial}.md").read_text()
    return [block for found, block in _BLOCK.findall(text) if found == kind]


Typed = Callable[..., str]


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Typed:
    """Type a command in the reader's folder; what it said comes back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(ROOT / "studies", tmp_path / "studies")

    def run(line: str, code: int = 0) -> str:
        words = shlex.split(line)
        if words[0] == "python":
            script = [sys.executable, str(ROOT / words[1]), *words[2:]]
            done = subprocess.run(script, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return done.stdout
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        assert (ended.value.code or 0) == code, f"{line}\n{captured.out}\n{captured.err}"
        return captured.out + captured.err

    return run


def commands(tutorial: str) -> list[str]:
    return [line for block in blocks(tutorial, "sh") for line in block.splitlines()]


def test_hospitals_tutorial_does_what_it_says(typed: Typed, tmp_path: Path) -> None:
    trial, plan, preflight, view = commands("hospital")
    typed(trial)
    assert "epsilon" in typed(plan)
    said = typed(preflight)
    assert "asks for nothing that it forbids" in said
    site = tmp_path / "hospitals" / "scanner-1" / "site.toml"
    text = re.sub(r"(?m)^max_steps_per_round = .*$", "max_steps_per_round = 3", site.read_text())
    assert text != site.read_text()
    site.write_text(text)
    assert "asks for 4 steps a round" in typed(preflight, code=1)
    typed(view)
    assert (tmp_path / "sheet.png").stat().st_size > 5_000


def test_researchers_tutorial_does_what_it_says(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [drawing], [study, sweep] = blocks("research", "python"), blocks("research", "toml")
    exec(compile(drawing, "tutorial", "exec"), {})
    assert len(list(tmp_path.glob("pictures/*/*.png"))) == 160
    (tmp_path / "own.toml").write_text(study)
    (tmp_path / "sweep.toml").write_text(study + sweep)
    install, partition, simulate, many = commands("research")
    assert install == "pip install ./examples/plugins"
    package, target = tmp_path / "examples", tmp_path / "installed"
    shutil.copytree(ROOT / "examples", package)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(package / "plugins")], check=True)
    monkeypatch.syspath_prepend(str(target))
    typed(partition)
    assert (tmp_path / "sites.png").stat().st_size > 5_000
    typed(simulate)
    page = (tmp_path / "runs" / "own" / "report.html").read_text()
    for model in ("Pooled", "Local"):
        assert model in page
    typed(many)
    swept = (tmp_path / "runs" / "sweep" / "report.html").read_text()
    assert "4 of 4 runs are finished" in swept


def test_auditors_tutorial_does_what_it_says(typed: Typed, tmp_path: Path) -> None:
    simulate, verify, ledger, attack = commands("auditor")
    typed(simulate)
    assert "epsilon" in typed(verify)
    typed(ledger)
    runs = tmp_path / "runs"
    shutil.copytree(runs / "claimed", runs / "forged")
    file = runs / "forged/arms/federated/sites/scanner-1/state/ledger.jsonl"
    forged = re.sub(r'("noise_multiplier": )\d', r"\g<1>9", file.read_text(), count=1)
    assert forged != file.read_text()
    file.write_text(forged)
    typed(ledger.replace("claimed", "forged"), code=7)
    typed(attack)
    assert (tmp_path / "audit-attack" / "audit.html").exists()
