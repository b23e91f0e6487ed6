"""Every command of docs/research.md, typed in its order in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from medfed.cli import main
from medfed.common.study_file import load_study
from medfed.simulations.sweep import cells_of

_GUIDE = Path(__file__).parents[2] / "docs" / "research.md"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def blocks(kind: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(_GUIDE.read_text()) if found == kind]


def test_every_command_of_the_guide_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    study, sweep, scarce, active, hostile, left_out = blocks("toml")
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "sweep.toml").write_text(study + sweep)
    (tmp_path / "scarce.toml").write_text(study + scarce)
    without = re.sub(r"\[privacy\].*?(?=\[simulation\])", "", study, flags=re.DOTALL)
    (tmp_path / "active.toml").write_text(without + active)
    (tmp_path / "hostile.toml").write_text(study + hostile)
    (tmp_path / "left_out.toml").write_text(study + left_out)
    assert [len(cell.settings) for cell in cells_of(load_study(tmp_path / "left_out.toml"))] == [
        2,
        2,
    ]
    said = {}
    for line in (line for block in blocks("sh") for line in block.splitlines()):
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        assert not ended.value.code, f"{line}\n{captured.out}\n{captured.err}"
        said[line] = captured.out
    assert len(said) == 22
    assert "noise_multiplier = 1.2" in said["medfed study show study.toml"]
    assert (tmp_path / "partition.png").stat().st_size > 5_000
    page = (tmp_path / "runs" / "first" / "report.html").read_text()
    assert "How sure the figures are" in page
    assert "<h3>Subgroups</h3>" in page
    assert "4 of 4 runs are finished" in (tmp_path / "runs" / "scarce" / "report.html").read_text()
    active_run = tmp_path / "runs" / "active" / "runs" / "c002-s1"
    assert (active_run / "figures" / "labels.svg").exists()
    hostile_page = (tmp_path / "runs" / "hostile" / "report.html").read_text()
    assert "the trigger taken for the target" in hostile_page
    assert "Federated, global model" in (tmp_path / "runs" / "ditto" / "report.html").read_text()
    swept = tmp_path / "runs" / "sweep"
    assert "8 of 8 runs are finished" in (swept / "report.html").read_text()
    kept = {path.name for path in swept.iterdir()}
    assert {"runs.csv", "cells.md", "cells.tex", "pairs.md", "pairs.tex", "figures"} <= kept
    assert (tmp_path / "runs" / "first" / "predictions.csv").stat().st_size > 5_000
    assert (tmp_path / "runs" / "comparison" / "compare.html").exists()
    assert (tmp_path / "runs" / "paired" / "paired.csv").exists()
    assert (tmp_path / "runs" / "audit" / "audit.html").exists()
    assert (tmp_path / "mlflow.db").exists()
    assert len(list(swept.glob("runs/*/tensorboard/events.*"))) == 8
    assert 'id="figure-bytes"' in (tmp_path / "runs" / "bytes" / "compare.html").read_text()
    assert len(list((tmp_path / "hospitals").glob("*/site.toml"))) == 3
