"""A coordinator that misbehaves towards a site: the site judges what it is sent.

Coordinator and site are real processes; a ServerApp of the test's own asks the site for what no
coordinator should.
"""

import hashlib
import io
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from asking import (
    MARK,
    SITE,
    STUDY,
    changed,
    check_nothing_hostile,
    events,
    joining,
    ledger_bytes,
    one_hospital,
    refusal,
    request_of,
    study_with,
    training,
    unharmed,
)
from deployment import Deployment
from fake_server import FakeServer

from medfed.client.releases import read_releases
from medfed.common import messages
from medfed.common.bundle import bundle_bytes, bundle_contents, bundle_digest
from medfed.common.errors import RefusalReason
from medfed.common.ledger import read_ledger
from medfed.common.messages import JoinReply, TrainReply
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with one_hospital(tmp_path_factory.mktemp("wicked-server")) as deployed:
        yield deployed


@pytest.fixture
def site(federation: Deployment) -> Iterator[Path]:
    with unharmed(federation) as folder:
        yield folder


# Bundles


def bundle(files: dict[str, bytes]) -> bytes:
    """A bundle in Flower's format: medfed's, and more or other files."""
    contents = {**bundle_contents(), **files}
    lines = [f"{n},{hashlib.sha256(c).hexdigest()},{8 * len(c)}" for n, c in contents.items()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in contents.items():
            packed.writestr(name, content)
        packed.writestr(".info/CONTENT", "\n".join(lines))
    return buffer.getvalue()


def program(folder: Path) -> bytes:
    """A module that leaves a mark when it is imported, and when it is asked for something."""
    marker = str(folder / f"{MARK}-imported")
    return f"""
from pathlib import Path
from flwr.clientapp import ClientApp
Path({marker!r}).touch()
app = ClientApp()
@app.query("join")
def join(message, context):
    Path({marker!r} + "-called").touch()
""".encode()


def code_bundles(folder: Path) -> dict[str, bytes]:
    ours, code = bundle_contents()["pyproject.toml"], program(folder)
    other = ours.replace(b"medfed.client.app:app", f"{MARK}:app".encode())
    assert other != ours
    return {
        "an app of its own": bundle({f"{MARK}.py": code, "pyproject.toml": other}),
        "medfed's name over other code": bundle(
            {
                "medfed/__init__.py": b"",
                "medfed/client/__init__.py": b"",
                "medfed/client/app.py": code,
            }
        ),
        "start-up code": bundle({"sitecustomize.py": code, f"{MARK}.pth": b"import sitecustomize"}),
        "one more byte": bundle({"README.md": bundle_contents()["README.md"] + b"\n"}),
        "a path out of its folder": bundle({f"../../../../{MARK}.py": code}),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "an app of its own",
        "medfed's name over other code",
        "start-up code",
        "one more byte",
        "a path out of its folder",
    ],
)
def test_foreign_bundle_is_refused_and_nothing_of_it_is_run(
    kind: str, federation: Deployment, site: Path
) -> None:
    foreign = code_bundles(federation.folder)[kind]
    digest = hashlib.sha256(foreign).hexdigest()
    # The hash that is declared is ours; what is sent is not.
    with FakeServer(federation, foreign) as server:
        reply = server.ask(SITE, messages.JOIN, joining())
        assert refusal(reply).reason == RefusalReason.POLICY
    assert {"sha256": digest} in events(site, "bundle_refused")
    shown = federation.medfed("site", "log", site / "site.toml")
    assert "its bundle is not one that this site approved" in " ".join(shown.split())
    assert not ledger_bytes(site)


def test_bundle_under_our_hash_with_another_content_is_never_run(federation: Deployment) -> None:
    site = federation.sites[SITE]
    foreign = code_bundles(federation.folder)["an app of its own"]
    known = len(events(site, "asked"))
    with FakeServer(federation) as server:
        put_in_place_of_ours(federation, foreign)
        try:
            # The SuperNode finds out, and ends; its agent starts it again.
            reply = server.ask(SITE, messages.JOIN, joining(), timeout_s=20)
            assert reply.has_error()
        except AssertionError as error:
            assert "No answer" in str(error)  # noqa: PT017 - one of two ways
        finally:
            put_in_place_of_ours(federation, bundle_bytes())
    assert len(events(site, "asked")) == known
    check_nothing_hostile(federation)
    # The next message, with the right bundle, is answered.
    federation.wait_for("the site", lambda: federation.is_ready(SITE), 180)
    with FakeServer(federation) as server:
        answer = server.ask(SITE, messages.JOIN, joining())
        assert isinstance(messages.unpack_reply(answer.content), JoinReply)


def put_in_place_of_ours(federation: Deployment, content: bytes) -> None:
    """Change what the SuperLink hands out under the hash of the installed release's bundle."""
    with closing(sqlite3.connect(federation.home / "superlink" / "state.db", 30)) as state, state:
        state.execute("UPDATE fab SET content = ? WHERE fab_hash = ?", (content, bundle_digest()))
        assert state.total_changes == 1


# Studies beyond the policy

BEYOND: dict[str, tuple[Callable[[], StudyConfig], RefusalReason]] = {
    "more steps": (lambda: changed("training", local_steps=4), RefusalReason.POLICY),
    "larger network": (lambda: study_with(model={"name": "resnet18"}), RefusalReason.POLICY),
    "no privacy": (
        lambda: study_with(privacy={"unit": "none"}, training={"local_steps": 2, "batch_size": 4}),
        RefusalReason.POLICY,
    ),
    "weaker unit": (
        lambda: changed("privacy", unit="record", images_per_patient=1),
        RefusalReason.POLICY,
    ),
    "more images a patient": (
        lambda: changed("privacy", images_per_patient=4),
        RefusalReason.POLICY,
    ),
    "less noise than allowed": (
        lambda: changed("privacy", noise_multiplier=0.2),
        RefusalReason.POLICY,
    ),
    "larger batches": (
        lambda: study_with(evaluation={"batch_size": 5000}),
        RefusalReason.POLICY,
    ),
    "epsilon over budget": (
        lambda: changed("privacy", noise_multiplier=0.31, sample_rate=0.9),
        RefusalReason.BUDGET,
    ),
    "classes that are not there": (
        lambda: changed("task", classes=[f"../../{MARK}", "b"]),
        RefusalReason.DATA,
    ),
}


def test_study_beyond_the_policy_is_refused_with_a_code_and_costs_nothing(
    federation: Deployment, site: Path
) -> None:
    before, asked = ledger_bytes(site), len(events(site, "refused"))
    with FakeServer(federation) as server:
        for kind, (study, reason) in BEYOND.items():
            for number, (message, content) in enumerate(
                (
                    (messages.JOIN, messages.pack_join_request(request_of(study()))),
                    (messages.TRAIN, training(study(), run=f"{kind}/x".replace(" ", "-"))),
                )
            ):
                if reason == RefusalReason.BUDGET and message == messages.JOIN:
                    continue  # what a round costs is known when it is asked for
                reply = server.ask(SITE, message, content, group=str(number))
                assert refusal(reply).reason == reason, kind
                assert ledger_bytes(site) == before, kind
        # The same with what the policy allows is answered, and charged.
        answer = messages.unpack_reply(
            server.ask(SITE, messages.TRAIN, training(parse_study(STUDY, "study"))).content
        )
        assert isinstance(answer, TrainReply)
    assert len(read_ledger(site / "state").entries) == 1
    assert len(events(site, "refused")) == asked + 2 * len(BEYOND) - 1
    listed, _ = read_releases(site / "state")
    assert [release.kind for release in listed][-1] == "update"
