"""Names, paths and bytes that no honest program would send, to a site and on the command line.

Nothing is written outside the folders, nothing is run, nothing ends a process.
"""

import json
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import (
    MARK,
    SITE,
    STUDY,
    check_nothing_hostile,
    events,
    hostile_study,
    joining,
    ledger_bytes,
    one_hospital,
    refusal,
    training,
    unharmed,
)
from attacks import memory_mb
from deployment import Deployment
from fake_server import FakeServer
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from typer.testing import CliRunner
from wicked import Crafted, Part, zeros
from wicked_replies import Bomb, bombs, header

from medfed.cli import app
from medfed.client.releases import read_releases
from medfed.common import messages
from medfed.common.errors import MedfedError
from medfed.common.messages import JoinReply, Refusal
from medfed.common.study_file import parse_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UP = f"../../../../../../..{tempfile.gettempdir()}/{MARK}"
ESCAPES = f"\x1b]0;{MARK}\x07\x1b[2J\r\n"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("hostile")
    Bomb.marker = str(folder / f"{MARK}-unpickled")
    with one_hospital(folder) as deployed:
        yield deployed


def put(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set one value of a study's table."""

    def change(table: dict[str, Any]) -> None:
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = value

    return change


STUDIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "study name": put("study", "name", value=UP),
    "study name with escapes": put("study", "name", value=ESCAPES),
    "study name, endless": put("study", "name", value="x" * 10**6),
    "arm": put("arm", value=UP),
    "class": put("task", "classes", value=[UP, ESCAPES, "a"]),
    "vocabulary": put("task", "report", "vocabulary", value=UP),
    "weights file": put("model", "weights", value=f"{UP}.safetensors"),
    "weights of the machine": put("model", "weights", value="/etc/hostname"),
    "weights by file URL": put("model", "weights", value="file:///etc/hostname"),
    "weights hash": put("model", "weights_sha256", value=f"../../{MARK}"),
    "frozen pattern": put("model", "freeze", value=["(" * 5000, UP]),
    "column": put("data", "columns", value=[UP]),
    "unknown section": put("__class__", value={"x": UP}),
    "not a number": put("study", "seed", value=10**400),
    "nested": put("study", "name", value=[[[[[]]]]]),
}


def test_hostile_names_of_a_study_reach_no_file(federation: Deployment) -> None:
    with unharmed(federation) as site, FakeServer(federation) as server:
        for kind, change in STUDIES.items():
            content = training_with(study=hostile_study(change))
            said = refusal(server.ask(SITE, messages.TRAIN, content))
            assert said.reason in ("study", "internal", "data", "policy"), kind
        refusal(server.ask(SITE, messages.JOIN, joining(study="[" * 100_000)))
        assert not ledger_bytes(site)


def training_with(**values: Any) -> RecordDict:
    """A request to train, with other values in its record."""
    content = training(parse_study(STUDY, "study"))
    content["medfed"] = ConfigRecord({**content["medfed"], **values})  # type: ignore[dict-item]
    return content


def test_hostile_run_round_and_kind_reach_no_file_and_no_screen(federation: Deployment) -> None:
    with unharmed(federation) as site, FakeServer(federation) as server:
        for run in (UP, ESCAPES, "x" * 10**6, "/etc/passwd"):
            said = server.ask(SITE, messages.JOIN, joining(run=run))
            assert isinstance(messages.unpack_reply(said.content), JoinReply | Refusal)
        for group in (UP, ESCAPES, "²", "9" * 5000, "-1", "99999999999999999999"):
            said = server.ask(SITE, messages.JOIN, joining(), group=group)
            assert isinstance(messages.unpack_reply(said.content), JoinReply)
        for kind in ("query.evil", "query.__init__", "train.evil", "evaluate.x"):
            reply = server.ask(SITE, kind, joining())
            assert reply.has_error() or messages.unpack_reply(reply.content)
        asked = events(site, "asked")
        assert {entry["run"] for entry in asked} <= {"unfit", "wicked/federated", "/etc/passwd"}
    for command in (("log", "--last", "0"), ("status",), ("releases",)):
        shown = federation.medfed("site", command[0], site / "site.toml", *command[1:])
        assert "\x1b]0" not in shown
        assert "\x07" not in shown
        assert len(shown) < 100_000
    listed, torn = read_releases(site / "state")
    assert listed
    assert not torn


def test_site_asks_nobody_but_its_coordinator(federation: Deployment) -> None:
    """A server that names a URL must not have the hospital ask other machines."""
    with (
        unharmed(federation) as site,
        socket.create_server(("127.0.0.1", 0)) as listener,
        FakeServer(federation) as server,
    ):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/{MARK}.safetensors"
        table = {**STUDY, "model": {"weights": url, "weights_sha256": "ab" * 32}}
        content = training_with(study=parse_study(table, "study").to_json())
        refusal(server.ask(SITE, messages.TRAIN, content))
        assert not select.select([listener], [], [], 0)[0]
        assert not ledger_bytes(site)


def with_array(**values: Any) -> RecordDict:
    """A request to train with another array of all arrays."""
    content = training(parse_study(STUDY, "study"))
    arrays = dict(content["arrays"])  # type: ignore[arg-type]
    name, old = next(iter(arrays.items()))
    plain = {"dtype": old.dtype, "shape": old.shape, "stype": old.stype, "data": old.data}
    content["arrays"] = ArrayRecord({**arrays, name: Array(**{**plain, **values})})  # type: ignore[arg-type]
    return content


WEIGHTS: dict[str, Callable[[], RecordDict]] = {
    "pickled objects": lambda: with_array(data=bombs()),
    "pickled objects, stated": lambda: with_array(data=bombs(), dtype="object"),
    "header of terabytes": lambda: with_array(data=header(f"[{2**46}]")),
    "header of recursion": lambda: with_array(data=header("[" * 9000 + "1")),
    "no arrays": lambda: RecordDict({"medfed": training(parse_study(STUDY, "study"))["medfed"]}),
    "nothing": RecordDict,
}


def test_weights_that_are_none_are_refused_and_cost_nothing(federation: Deployment) -> None:
    with unharmed(federation) as site, FakeServer(federation) as server:
        for kind, content in WEIGHTS.items():
            reply = server.ask(SITE, messages.TRAIN, content())
            assert refusal(reply).reason in ("study", "internal"), kind
        assert not ledger_bytes(site)


PARTS: dict[str, Callable[[Message], Crafted]] = {
    "garbage for a content": lambda m: Crafted(m, Part("RecordDict", b"\xff garbage")),
    "garbage for a record": lambda m: Crafted(
        m, Part.holding("RecordDict", {"medfed": Part("ConfigRecord", b"\xff\xff\xff")})
    ),
    "array for a content": lambda m: Crafted(m, Part("Array", b"{}")),
    "no message": lambda m: Crafted(m, root=Part("MetricRecord", b"")),
    "a terabyte from one piece": lambda m: Crafted(
        m, Part.holding("RecordDict", {"arrays": Part.holding("ArrayRecord", {"w": zeros(10**12)})})
    ),
}


def test_message_that_cannot_be_read_costs_no_worker(federation: Deployment) -> None:
    with unharmed(federation), FakeServer(federation) as server:
        for kind, craft in PARTS.items():
            server.push_crafted(SITE, messages.JOIN, craft)
            # The one after it is answered, which is all that a site owes.
            reply = server.ask(SITE, messages.JOIN, joining())
            assert isinstance(messages.unpack_reply(reply.content), JoinReply), kind
        assert memory_mb(federation.site_status(SITE)["worker_pid"]) < 2000


# The command line


def test_hostile_names_on_the_command_line_reach_no_file(federation: Deployment) -> None:
    study = federation.folder / "plain.toml"
    study.write_text(
        '[study]\nname = "plain"\n[task]\nclasses = ["a", "b"]\n[training]\nlocal_steps = 1\n'
        'batch_size = 4\n[federation]\nmin_sites = 1\n[privacy]\nunit = "none"\n'
    )
    escaped = federation.folder / "escaped.toml"
    escaped.write_text(study.read_text().replace('"plain"', json.dumps(UP)))
    known = runs_and_sites(federation)
    for name in (UP, f"../{MARK}", f"/{MARK}", "..", ".", f"a/{MARK}", ESCAPES, f"{MARK}\n"):
        for arguments in (
            ("run", str(study), "--name", name, "--detach"),
            ("run", "--resume", name, "--detach"),
            ("stop", name),
            ("invite", name),
            ("approve", name, "--yes"),
            ("revoke", name),
        ):
            assert_refused(federation, *arguments)
    assert_refused(federation, "run", str(escaped), "--detach")
    assert runs_and_sites(federation) == known
    check_nothing_hostile(federation)


def runs_and_sites(federation: Deployment) -> list[Path]:
    found = [*(federation.home / "runs").iterdir(), *(federation.home / "sites").iterdir()]
    return sorted(path for path in found if path.name != ".lock")


def assert_refused(federation: Deployment, *arguments: str) -> None:
    """Hold a command to a clean refusal, whose text is fit for a screen."""
    command = ["federation", *arguments, "--home", str(federation.home)]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, MedfedError), (arguments, done.exception, done.output)
    assert str(done.exception).replace("\n", "").isprintable(), arguments
