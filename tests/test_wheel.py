"""The wheel that sites install: whole, the same bytes again, and it runs without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def build(out: Path) -> Path:
    environment = {**os.environ, "VENV": str(Path(sys.executable).parents[1])}
    environment["SOURCE_DATE_EPOCH"] = "1700000000"
    done = subprocess.run(
        [str(ROOT / "scripts" / "build_wheel"), str(out)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    assert wheel.name in done.stdout
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel in it; everything else is this one's."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    inside = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    target, programs = Path(inside["purelib"]), Path(inside["scripts"])
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
         "--python", str(programs / "python"), "install", "--no-deps", str(wheel)],
        check=True,
    )  # fmt: skip
    # After the wheel: its own packages come first on the path. Not this environment's .pth files,
    # of which one leads to the checkout.
    (target / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def run(programs: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [str(programs / arguments[0]), *arguments[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_all_packages_and_their_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "common/errors.py",
        "client/app.py",
        "server/federation/status.py",
        "simulations/reporting/report.html.j2",
        "simulations/reporting/page.css",
        "simulations/auditing/audit.html.j2",
        "cli/__init__.py",
        "py.typed",
    ):
        assert f"medfed/{name}" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"medfed"}
    assert not [name for name in names if name.endswith((".pyc", ".key", ".pem"))]


def test_wheel_is_the_same_bytes_again(wheel: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


def test_wheel_runs_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed, "python", "-c", "import medfed; print(medfed.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where
    assert "." in run(installed, "medfed", "--version", cwd=tmp_path)
    told = run(installed, "medfed", "site", "--help", cwd=tmp_path)
    for command in ("init", "enroll", "preflight", "start", "pause", "leave"):
        assert command in told
    assert "status" in run(installed, "medfed", "federation", "--help", cwd=tmp_path)
    # Needs every package of ours and Flower.
    program = "import medfed.client.app, medfed.server.app, medfed.simulations.reporting.report"
    run(installed, "python", "-c", program, cwd=tmp_path)
