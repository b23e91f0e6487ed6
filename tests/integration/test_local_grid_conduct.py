"""What the round loop does when sites fail, come late or share a name; and Flower's own loop."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from comparison import differences, facts
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.client.app import app as client_app
from medfed.client.site import load_site
from medfed.common import messages
from medfed.common.errors import RunError
from medfed.common.models import build_model, frozen_state_digest
from medfed.common.state_dicts import digest, read_state
from medfed.common.tasks import make_task
from medfed.server.app import main as server_main
from medfed.server.participants import Participant
from medfed.server.records import ArmFolder
from medfed.server.strategy import FedAvgStrategy
from medfed.simulations.grids.local import LocalGrid
from medfed.simulations.study import Options, read_run, run_study

Prepare = Callable[..., Path]
TRAIN_ROUND_1, TRAIN_ROUND_2 = (messages.TRAIN, "1"), (messages.TRAIN, "2")


class _Misbehaving(ClientApp):
    """The ClientApp, with something done first for some messages to some sites."""

    def __init__(self, before: Callable[[str, tuple[str, str]], None]) -> None:
        super().__init__()
        self._before = before

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        self._before(site, (message.metadata.message_type, message.metadata.group_id))
        return client_app(message, context)


@pytest.fixture
def run_with(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path, Callable[[str, tuple[str, str]], None]], None]:
    """Runs a prepared study on LocalGrid with a misbehaving ClientApp."""

    def run(folder: Path, before: Callable[[str, tuple[str, str]], None]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("medfed.simulations.study.client_app", _Misbehaving(before))
            run_study(folder, Options(grid="local", workers=3))

    return run


def _arm(run: Path) -> ArmFolder:
    return ArmFolder(run / "arms" / "federated")


def _weights(run: Path) -> list[str]:
    return [record.weights_sha256 for record in _arm(run).read_rounds()]


@pytest.mark.parametrize("failure", [TypeError("a bug"), MemoryError(), SystemExit(3)])
def test_round_goes_on_without_a_failing_site(
    failure: BaseException, prepare: Prepare, run_with: Callable[..., None]
) -> None:
    def fail(site: str, message: tuple[str, str]) -> None:
        if site == "scanner-2" and message[0] == messages.TRAIN:
            raise failure

    run = prepare("plain")
    run_with(run, fail)

    others = prepare("plain")
    plan = _arm(others).read_plan()
    _arm(others).write_plan(replace(plan, train_sites=("scanner-1", "scanner-3")))
    run_study(others, Options(grid="local", workers=1))

    for record in _arm(run).read_rounds():
        assert record.sites["scanner-2"].status == "failed"
        assert record.sites["scanner-2"].reason == "error 2"
        assert record.sites["scanner-2"].weight == 0
        assert {record.sites[name].status for name in ("scanner-1", "scanner-3")} == {"ok"}
    assert facts(run)["outcome"] == ("finished", "")
    assert _weights(run) == _weights(others)


def test_failure_keeps_the_sites_exception_out_of_every_record(
    prepare: Prepare, run_with: Callable[..., None]
) -> None:
    def fail(site: str, message: tuple[str, str]) -> None:
        if site == "scanner-2" and message[0] == messages.TRAIN:
            raise TypeError("patient Erika Mustermann")

    run = prepare("plain")
    run_with(run, fail)
    texts = [path.read_bytes() for path in (run / "arms").rglob("*.json*")]
    assert texts
    assert not any(b"Mustermann" in text for text in texts)


def test_run_fails_without_quorum_and_resumes_to_the_same_bits(
    prepare: Prepare, run_with: Callable[..., None], serial: Callable[[str], Path]
) -> None:
    def fail(site: str, message: tuple[str, str]) -> None:
        if site != "scanner-1" and message == TRAIN_ROUND_2:
            raise TypeError("a bug")

    run = prepare("private")
    with pytest.raises(RunError, match="Round 2 had 1 usable updates, the quorum is 2"):
        run_with(run, fail)
    outcome = _arm(run).read_outcome()
    assert outcome is not None
    assert outcome["state"] == "failed"
    assert "scanner-2: failed (error 2)" in outcome["reason"]
    assert len(_weights(run)) == 1

    run_study(run, Options(grid="local", workers=1))
    # scanner-1 trained round 2 twice: the same release, seeded, so its ledger charged it once.
    assert differences(serial("private"), run) == []


def test_site_that_answers_after_the_deadline_is_late_and_its_update_is_not_used(
    prepare: Prepare, run_with: Callable[..., None]
) -> None:
    def fail_once(site: str, message: tuple[str, str]) -> None:
        if site == "scanner-2" and message == TRAIN_ROUND_1:
            raise TypeError("a bug")

    absent = prepare("plain", "federation.round_timeout_s=6")
    run_with(absent, fail_once)

    next_round = threading.Event()

    def come_late(site: str, message: tuple[str, str]) -> None:
        if site == "scanner-2" and message == TRAIN_ROUND_1:
            # The update arrives in the middle of round 2, which must not take it for its own.
            assert next_round.wait(timeout=60)
        elif message == TRAIN_ROUND_2:
            next_round.set()

    run = prepare("plain", "federation.round_timeout_s=6")
    run_with(run, come_late)

    first, second = _arm(run).read_rounds()
    assert (first.sites["scanner-2"].status, first.sites["scanner-2"].reason) == ("late", "late")
    assert first.seconds >= 6
    assert {site.status for site in second.sites.values()} == {"ok"}
    assert _weights(run) == _weights(absent)
    # How it says that scanner-2 was missing; and that site did train, as its own ledger says.
    assert differences(absent, run) == ["ledger of scanner-2", "round 1"]


def test_joining_refuses_two_nodes_of_one_name(prepare: Prepare) -> None:
    run = prepare("plain")
    [first, second, _] = sorted((_arm(run).folder / "sites").glob("*/site.toml"))
    with (
        LocalGrid(client_app, {2: first, 3: second, 4: first}) as grid,
        pytest.raises(RunError, match="Two nodes call themselves scanner-1"),
    ):
        server_main(grid, _server_context(run))
    assert json.loads((_arm(run).folder / "outcome.json").read_text())["state"] == "failed"
    assert _arm(run).read_rounds() == []


class _AppearingGrid(LocalGrid):
    """Shows its first node alone at first, then all."""

    shown = False

    def get_node_ids(self) -> list[int]:
        nodes = list(super().get_node_ids())
        self.shown, before = True, self.shown
        return nodes if before else nodes[:1]


def test_joining_waits_for_no_silent_node_once_the_expected_sites_are_there(
    prepare: Prepare, serial: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SuperNode that was killed is listed for a minute, and never answers."""
    monkeypatch.setattr("medfed.server.joining._JOIN_GRACE_S", 0.5)
    run = prepare("plain")
    paths = sorted((_arm(run).folder / "sites").glob("*/site.toml"))
    finished = threading.Event()

    def be_silent(site: str, message: tuple[str, str]) -> None:
        if site == "silent":
            assert finished.wait(timeout=60)

    nodes = dict(enumerate([run / "silent" / "site.toml", *paths], start=2))
    with _AppearingGrid(_Misbehaving(be_silent), nodes, workers=2) as grid:
        server_main(grid, _server_context(run))
        finished.set()
    assert differences(serial("plain"), run) == []


def test_server_app_refuses_a_run_config_that_names_no_arm(tmp_path: Path) -> None:
    with LocalGrid(client_app, {}) as grid, pytest.raises(RunError, match="run_config arm"):
        server_main(grid, _server_context(tmp_path))


def test_flowers_own_loop_ends_in_the_same_bits(
    prepare: Prepare, serial: Callable[[str], Path]
) -> None:
    run = prepare("private")
    study, _ = read_run(run)
    nodes = dict(enumerate(sorted((_arm(run).folder / "sites").glob("*/site.toml")), start=2))
    sites = [
        Participant(site.name, node, site.data.public_num_patients)
        for node, site in ((node, load_site(path)) for node, path in nodes.items())
    ]
    model = build_model(study, make_task(study).num_outputs)
    strategy = FedAvgStrategy(
        study,
        _arm(run).read_plan().run,
        trainers=sites,
        evaluators=sites,
        frozen_sha256=frozen_state_digest(model),
    )
    initial = read_state(model)
    with LocalGrid(client_app, nodes) as grid:
        result = strategy.start(grid, messages.pack_arrays(initial), study.training.rounds)

    records = _arm(serial("private")).read_rounds()
    assert digest(messages.unpack_arrays(result.arrays)) == records[-1].weights_sha256
    assert {
        number: dict(metrics) for number, metrics in result.evaluate_metrics_clientapp.items()
    } == {record.round_number: record.metrics for record in records}


def _server_context(run: Path) -> Context:
    return Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"arm": str(run / "arms" / "federated")},
    )
