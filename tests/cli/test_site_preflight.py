"""`medfed site preflight`: a line each, and an exit code that scripts can use."""

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medfed.cli import site_preflight
from medfed.common.study_file import study_to_toml

sys.path.insert(0, str(Path(__file__).parents[1] / "client" / "agent"))

from trial_hospital import PLANTED, make_site, make_store, make_study

app = typer.Typer()


@app.callback()
def _root() -> None:
    """Make `preflight` a command of its own."""


site_preflight.add_to(app)


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    return make_site(tmp_path / "clinic", make_store(tmp_path / "stores"))


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["preflight", *map(str, arguments)], env={"COLUMNS": "80"})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def test_lines_are_aligned_and_nothing_failed(site_file: Path) -> None:
    code, printed = run(site_file)
    assert code == 0
    lines = [line for line in printed.splitlines()[:-2] if line]
    assert all(line.startswith((" " * 24, "ok      ", "warning ", "skipped ")) for line in lines), (
        printed
    )
    assert max(map(len, lines)) <= 80
    assert "Nothing failed" in printed
    for planted in PLANTED:
        assert planted not in printed


def test_exit_code_is_one_when_something_failed(site_file: Path) -> None:
    (site_file.parent / "keys" / "node.key").chmod(0o644)
    code, printed = run(site_file)
    assert code == 1
    assert "failed    files" in printed
    assert "Not ready: 1 failed" in printed
    code, printed = run(site_file.parent / "nowhere.toml")
    assert code == 1


def test_json_is_for_programs(site_file: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(study_to_toml(make_study(rounds=2)))
    code, printed = run(site_file, "--study", study, "--json")
    table = json.loads(printed)
    assert (code, table["ready"]) == (0, True)
    found = {finding["check"]: finding for finding in table["findings"]}
    assert found["budget"]["level"] == "ok"
    assert set(found["budget"]) == {"check", "level", "text"}
    site_file.chmod(0o666)
    code, printed = run(site_file, "--json")
    assert (code, json.loads(printed)["ready"]) == (1, False)
