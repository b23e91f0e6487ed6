"""Every command of the two guides is run, in their order, by real processes."""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from deployment import Deployment, answers, deployment
from ports import free_port

_REPOSITORY = Path(__file__).resolve().parents[2]
_BINARIES = Path(sys.executable).parent
_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
# Installation from an index is what tests/test_wheel.py tries with a wheel of this tree.
_INSTALLS = ("python3 -m venv", "medfed-env/bin/pip", ". medfed-env/bin/activate")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def commands_of(guide: str) -> list[str]:
    text = (_REPOSITORY / "docs" / guide).read_text(encoding="utf-8")
    lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith(_INSTALLS)]


@dataclass
class Walk:
    """Follows a guide from line to line.

    Attributes:
        deployed: Ends its processes.
        folder: Where the next command is typed.
        replace: What the guide says and what it is here.
        after: What somebody else does once a command (a regular expression) was typed.
        stays: Commands that stay in a window of their own.
    """

    deployed: Deployment
    folder: Path
    replace: dict[str, str]
    after: dict[str, Callable[[str], None]] = field(default_factory=dict)
    stays: tuple[str, ...] = (r"federation start$", r"site start")
    done: list[str] = field(default_factory=list)

    def follow(self, commands: list[str]) -> None:
        for line in commands:
            self.type(line)

    def type(self, line: str) -> None:
        typed = line
        for said, here in self.replace.items():
            typed = typed.replace(said, here)
        words = shlex.split(typed)
        if words[0] == "cd":
            self.folder = self.folder / words[1]
        elif any(re.search(pattern, line) for pattern in self.stays):
            self._window(words)
        else:
            self._run(words)
        self.done.append(line)
        for pattern, what in self.after.items():
            if re.search(pattern, line):
                what(line)

    def _run(self, words: list[str]) -> None:
        said = subprocess.run(
            [str(_BINARIES / words[0]), *words[1:]],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert said.returncode == 0, (
            f"{words}: {said.stdout}\n{said.stderr}\n{self.deployed.logs()}"
        )
        assert "Traceback" not in said.stderr

    def _window(self, words: list[str]) -> None:
        name = f"window-{len(self.done)}"
        with (self.deployed.folder / f"{name}.log").open("ab") as log:
            self.deployed.processes[name] = subprocess.Popen(
                [str(_BINARIES / words[0]), *words[1:]],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def environment(self) -> dict[str, str]:
        table = self.deployed.environment
        del table["MEDFED_FEDERATION"]  # the guides use ./federation
        return table


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployment]:
    with deployment(tmp_path) as found:
        shutil.copytree(_REPOSITORY / "studies", tmp_path / "studies")
        yield found


def test_every_command_of_the_hospitals_guide_works(deployed: Deployment, tmp_path: Path) -> None:
    deployed.medfed("data", "trial", "studies/rehearsal.toml", "--out", "hospitals")
    deployed.found()
    deployed.start_coordinator()
    deployed.medfed("federation", "invite", "north", "--out", tmp_path / "invite")
    shutil.copy(tmp_path / "studies" / "rehearsal.toml", tmp_path / "study.toml")

    def approve(line: str) -> None:
        deployed.medfed("federation", "approve", "north", "--yes")

    def connect_and_run_a_study(line: str) -> None:
        deployed.sites["north"] = tmp_path / "north"
        deployed.wait_for("north", lambda: _is_up(deployed, "north"))
        # So that there is something to see in what follows.
        deployed.medfed(
            *("federation", "run", "study.toml", "--set", "federation.min_sites=1"),
            timeout_s=300,
        )

    walk = Walk(
        deployed,
        tmp_path,
        {"/data/prepared/store": str(tmp_path / "hospitals" / "scanner-1" / "store")},
        after={r"enroll \.\./invite": approve, "site start": connect_and_run_a_study},
    )
    commands = commands_of("hospital.md")
    assert len(commands) > 15
    walk.follow(commands)
    assert walk.done == commands
    assert "north" in deployed.medfed("federation", "sites")
    assert "left" in deployed.medfed("federation", "sites")


def test_every_command_of_the_coordinators_guide_works(
    deployed: Deployment, tmp_path: Path
) -> None:
    commands = commands_of("coordinator.md")
    at = commands.index("medfed federation init fl.example.org:8443")
    until = commands.index("medfed federation run study.toml --name lesions")
    port = free_port()
    shutil.copy(tmp_path / "studies" / "rehearsal.toml", tmp_path / "study.toml")

    def on_free_port(line: str) -> None:
        _set_control_port(walk.folder / "federation" / "federation.toml")

    def wait_until_up(line: str) -> None:
        deployed.wait_for("the coordinator", lambda: answers(port))

    def the_same_for_the_others(line: str) -> None:
        for name in ("scanner-2", "scanner-3"):
            for earlier in commands[3:7]:
                walk.type(earlier.replace("scanner-1", name).replace("invite-1", f"invite-{name}"))
        for name in ("scanner-1", "scanner-2", "scanner-3"):
            deployed.sites[name] = tmp_path / "hospitals" / name
        deployed.wait_for(
            "the sites", lambda: all(_is_up(deployed, name) for name in deployed.sites)
        )

    walk = Walk(deployed, tmp_path, {"localhost:8443": f"localhost:{port}"})
    walk.after = {
        "federation init": on_free_port,
        "federation start$": wait_until_up,
        r"site start hospitals/scanner-1": the_same_for_the_others,
    }
    walk.follow(commands[:at])

    # A federation of its own, founded for real.
    real = tmp_path / "real"
    real.mkdir()
    other_port = free_port()
    other = Walk(deployed, real, {"fl.example.org:8443": f"127.0.0.1:{other_port}"})

    def enrol_north(line: str) -> None:
        north = tmp_path / "north"
        shutil.copytree(tmp_path / "hospitals" / "scanner-1", north)
        shutil.rmtree(north / "state")
        shutil.rmtree(north / "keys")
        text = (north / "site.toml").read_text().replace('"scanner-1"', '"north"')
        (north / "site.toml").write_text(text[: text.index("[connection]")])
        said = deployed.medfed("site", "enroll", real / "invite", north / "site.toml")
        [fingerprint] = re.findall(r"[0-9a-f]{4}(?:-[0-9a-f]{4})+", said)
        other.replace["1f3a-..."] = fingerprint

    other.after = {
        "federation init": lambda line: _set_control_port(real / "federation/federation.toml"),
        "federation start$": lambda line: deployed.wait_for(
            "the other", lambda: answers(other_port)
        ),
        "federation invite north": enrol_north,
    }
    other.follow(commands[at:until])

    # Back at the first: a run that is stopped and resumed while it lasts.
    walk.replace |= {"--name lesions": "--name lesions --set training.rounds=12"}
    walk.stays = (*walk.stays, "--name lesions")
    walk.after = {
        "--name lesions": lambda line: deployed.wait_for(
            "two rounds",
            lambda: (
                _text(tmp_path / "federation/runs/lesions/arms/federated/rounds.jsonl").count("\n")
                >= 2
            ),
            timeout_s=200,
        )
    }
    walk.follow(commands[until:])
    queue = _text(tmp_path / "federation" / "runs" / "lesions" / "queue.json")
    assert '"finished"' in queue


def _is_up(deployed: Deployment, name: str) -> bool:
    return deployed.site_status(name).get("state") in ("waiting", "working")


def _set_control_port(config: Path) -> None:
    text = re.sub(r"(?m)^control_port\s*=.*$", f"control_port = {free_port()}", config.read_text())
    config.write_text(text)


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8")
    return ""
