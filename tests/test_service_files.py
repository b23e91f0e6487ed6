"""systemd units and container files: each command in them exists, and they grant what they say."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.cli import app
from medfed.client.agent.folder import AgentFolder, Status
from medfed.client.site import load_site
from medfed.common.errors import MedfedError
from medfed.common.files import write_json
from medfed.server.federation.home import FederationConfig, init_home

ROOT = Path(__file__).resolve().parents[1]
UNITS = sorted((ROOT / "scripts" / "systemd").glob("*.service"))
CONTAINERS = sorted((ROOT / "scripts" / "container").glob("Containerfile.*"))
SITE_UNIT = ROOT / "scripts" / "systemd" / "medfed-site@.service"
SITE_CONTAINER = ROOT / "scripts" / "container" / "Containerfile.site"
BINARIES = Path(sys.executable).parent
# What stands before medfed's own arguments: the program, or the image whose entry point it is.
_BEFORE = re.compile(r"(?:/opt/medfed/bin/medfed|\bmedfed-(?:site|federation)|\bmedfed) (?=[a-z])")


def unit(path: Path) -> configparser.ConfigParser:
    class Unit(configparser.ConfigParser):
        def optionxform(self, optionstr: str) -> str:
            return optionstr

    read = Unit(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=True)
    read.read_string(path.read_text(encoding="utf-8"))
    return read


def commands(path: Path) -> list[list[str]]:
    """Return the arguments of each medfed command in a file, its comments included."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        instruction = re.match(r"CMD (\[.*\])", line.strip())
        if instruction:
            words = json.loads(instruction[1])
            line = " ".join(["medfed", *words]) if words[0] != "sh" else words[-1]
        match = _BEFORE.search(line)
        is_command = re.match(r"(# {3,}|# [A-Z][a-z ]*: +|ExecStart=|medfed )", line)
        if match and is_command:
            found.append(shlex.split(line[match.end() :].partition("|")[0]))
    return found


@pytest.mark.parametrize("path", [*UNITS, *CONTAINERS], ids=lambda path: path.name)
def test_every_command_in_a_service_file_exists(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    found = commands(path)
    assert len(found) >= 3, found
    for words in found:
        plain = [word for word in words if not word.startswith("-")]
        told = CliRunner().invoke(app, [*plain[:2], "--help"])
        assert told.exit_code == 0, words
        assert f"medfed {plain[0]} {plain[1]}" in " ".join(told.output.split()), words
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", told.output), (words, option)


def test_commands_are_found_wherever_they_stand() -> None:
    assert ["site", "start", "/var/lib/medfed/%i/site.toml"] in commands(SITE_UNIT)
    found = commands(SITE_CONTAINER)
    assert ["site", "start", "/site/site.toml"] in found
    assert ["site", "status", "/site/site.toml", "--json"] in found
    assert ["site", "enroll", "/site/invite", "/site/site.toml"] in found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_hardened(path: Path) -> None:
    service = unit(path)["Service"]
    own = service["ReadWritePaths"]
    assert own == service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert own in service["ExecStart"]
    for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictSUIDSGID"):
        assert service[key] == "true", key
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["User"] not in ("", "root")
    assert service["Restart"] == "on-failure"
    assert service["UMask"] == "0077"


def test_units_stay_down_with_a_file_to_be_mended(tmp_path: Path) -> None:
    spoilt = tmp_path / "federation.toml"
    spoilt.write_text("address = 1\n")
    for name, command in (
        ("medfed-federation.service", ["federation", "start", "--home", str(tmp_path)]),
        ("medfed-site@.service", ["site", "start", str(spoilt)]),
    ):
        service = unit(ROOT / "scripts" / "systemd" / name)["Service"]
        error = CliRunner().invoke(app, command).exception
        assert isinstance(error, MedfedError)
        assert service["RestartPreventExitStatus"] == str(error.exit_code), name


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    text = path.read_text(encoding="utf-8")
    copy.write_text(text.replace("/opt/medfed/bin/medfed", str(BINARIES / "medfed")))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    rated = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold=20",
            str(copy),
        ],
        capture_output=True,
        text=True,
    )
    # Exposure of at most 2.0 of 10.
    assert rated.returncode == 0, rated.stdout[-200:] + rated.stderr
    copy.write_text(text.replace("ProtectSystem", "ProtectSystemm"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert "ProtectSystemm" in verified.stderr


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, rest) of each, continued lines joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_containers_run_as_a_user_and_install_what_is_pinned(path: Path) -> None:
    found = instructions(path)
    names = [name for name, _ in found]
    assert found[0] == ("FROM", "docker.io/library/python:3.11-slim")
    run = next(rest for name, rest in found if name == "RUN")
    assert "--constraint /tmp/medfed/constraints.txt" in run
    user = next(rest for name, rest in found if name == "USER")
    assert re.fullmatch(r"(1\d{4}):\1", user)
    assert f"--uid {user.partition(':')[0]}" in run
    assert names.index("USER") < names.index("ENTRYPOINT")
    for name, rest in found:
        if name == "COPY":
            assert all((ROOT / part).exists() or "dist/" in part for part in rest.split()[:-1])
    ports = [rest for name, rest in found if name == "EXPOSE"]
    assert ports == ([] if path == SITE_CONTAINER else ["8443"])


def check(path: Path, **paths: Path) -> int:
    """Run a container file's HEALTHCHECK with other paths; return its exit code."""
    rest = next(rest for name, rest in instructions(path) if name == "HEALTHCHECK")
    shell, option, command = json.loads(rest[rest.index("[") :])
    for inside, here in paths.items():
        command = command.replace(f"/{inside}/", f"{here}/")
    folders = os.pathsep.join([str(BINARIES), os.environ["PATH"]])
    environment = {**os.environ, "PATH": folders, **{
        f"MEDFED_{inside.upper()}": str(here) for inside, here in paths.items()
    }}  # fmt: skip
    return subprocess.run(
        [shell, option, command], env=environment, capture_output=True, check=False
    ).returncode


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_healthcheck_of_a_site_follows_its_agent(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "north"\n[data]\nstores = ["store"]\n')
    assert check(SITE_CONTAINER, site=tmp_path) == 1
    folder = AgentFolder(load_site(tmp_path / "site.toml"))
    folder.make()
    status = Status(pid=os.getpid(), state="waiting", since=now(), heartbeat=now())
    write_json(folder.status_file, asdict(status))
    assert check(SITE_CONTAINER, site=tmp_path) == 0
    write_json(folder.status_file, {**asdict(status), "state": "stopped"})
    assert check(SITE_CONTAINER, site=tmp_path) == 1


def test_healthcheck_of_a_federation_follows_its_supervisor(tmp_path: Path) -> None:
    path = ROOT / "scripts" / "container" / "Containerfile.federation"
    home = init_home(
        tmp_path / "federation", FederationConfig(name="trial", address="fed.example.org:8443")
    )
    assert check(path, federation=home.folder) == 1
    processes = {"superlink": {"pid": 1, "restarts": 0, "state": "running"}}
    table = {"pid": 1, "started": now(), "heartbeat": now(), "problem": "", "processes": processes}
    write_json(home.supervisor_file, table)
    assert check(path, federation=home.folder) == 0
