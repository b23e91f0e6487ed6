"""Secure aggregation through the whole loop: the same mean, sites that leave, everyone's noise."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from medfed.client.app import app as client_app
from medfed.common import messages
from medfed.common.accounting import GaussianEvent, renyi_epsilon
from medfed.common.errors import RunError
from medfed.common.ledger import Ledger
from medfed.common.state_dicts import StateDict
from medfed.server.records import ArmFolder
from medfed.simulations.study import Options, run_study

Prepare = Callable[..., Path]
Misbehave = Callable[[str, str], bool]


def weights_of(run: Path) -> StateDict:
    return load_file(run / "arms" / "federated" / "model.safetensors")


def rounds_of(run: Path) -> list[dict[str, object]]:
    lines = (run / "arms" / "federated" / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class _Leaving(ClientApp):
    """The ClientApp, which fails at some sites in some phases."""

    def __init__(self, leaves: Misbehave) -> None:
        super().__init__()
        self._leaves = leaves

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        if self._leaves(site, message.metadata.message_type):
            raise TypeError("gone")
        return client_app(message, context)


@pytest.fixture
def run_leaving(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Misbehave], None]:
    def run(folder: Path, leaves: Misbehave) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("medfed.simulations.study.client_app", _Leaving(leaves))
            run_study(folder, Options(grid="local", workers=2))

    return run


def test_masked_mean_is_the_plain_mean_to_the_grid(
    prepare: Prepare, serial: Callable[[str], Path]
) -> None:
    plain = prepare("secure", "secure_aggregation.enabled=false", "federation.weighting=public")
    run_study(plain, Options(grid="local", workers=1))
    ours, theirs = weights_of(serial("secure")), weights_of(plain)
    assert ours.keys() == theirs.keys()
    difference = max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)
    moved = max(float(np.abs(theirs[name]).max()) for name in ours)
    # Two rounds of n * max_value * 2**-31, and float32's own rounding; training amplifies it some.
    assert 0 < difference < 1e-5 < 1e-3 * moved
    sites = rounds_of(serial("secure"))[-1]["sites"]
    assert {name: site["weight"] for name, site in sites.items()} == {  # type: ignore[attr-defined]
        "scanner-1": 30,
        "scanner-2": 40,
        "scanner-3": 25,
    }


def test_server_sees_neither_losses_nor_counts_nor_plain_updates(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[messages.TrainReply] = []
    unpack = messages.unpack_reply

    def watched(content: object) -> messages.Reply:
        reply = unpack(content)  # type: ignore[arg-type]
        if isinstance(reply, messages.TrainReply):
            seen.append(reply)
        return reply

    monkeypatch.setattr(messages, "unpack_reply", watched)
    run_study(prepare("secure"), Options(grid="local", workers=1))
    assert len(seen) == 6
    for reply in seen:
        assert (reply.loss, reply.num_examples) == (None, None)
        assert set(reply.update) == {messages.MASKED}
        values = reply.update[messages.MASKED]
        assert values.dtype == np.uint32
        # Uniform on 32 bits: 16 equal bins, chi-square with 15 degrees of freedom.
        counts = np.bincount((values >> np.uint32(28)).astype(int), minlength=16)
        expected = values.size / 16
        assert float(((counts - expected) ** 2 / expected).sum()) < 60  # p = 2e-7


@pytest.mark.parametrize("phase", [messages.SECURE_KEYS, messages.SECURE_SHARES, messages.TRAIN])
def test_round_survives_a_site_that_leaves_before_its_update(
    phase: str, prepare: Prepare, run_leaving: Callable[[Path, Misbehave], None]
) -> None:
    run = prepare("secure")
    run_leaving(run, lambda site, kind: site == "scanner-2" and kind == phase)
    others = prepare("secure", "secure_aggregation.enabled=false", "federation.weighting=public")
    arm = ArmFolder(others / "arms" / "federated")
    run_leaving(others, lambda site, kind: site == "scanner-2" and kind == messages.TRAIN)
    assert arm.read_outcome() is not None
    ours, theirs = weights_of(run), weights_of(others)
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-5
    for record in ArmFolder(run / "arms" / "federated").read_rounds():
        assert record.sites["scanner-2"].status == "failed"
        assert {record.sites[name].status for name in ("scanner-1", "scanner-3")} == {"ok"}


def test_update_counts_of_a_site_that_leaves_after_it(
    prepare: Prepare,
    run_leaving: Callable[[Path, Misbehave], None],
    serial: Callable[[str], Path],
) -> None:
    run = prepare("secure")
    run_leaving(run, lambda site, kind: site == "scanner-2" and kind == messages.SECURE_REVEAL)
    ours, theirs = weights_of(run), weights_of(serial("secure"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_round_is_lost_below_the_threshold_and_resumes_to_the_same_bits(
    prepare: Prepare,
    run_leaving: Callable[[Path, Misbehave], None],
    serial: Callable[[str], Path],
) -> None:
    run = prepare("secure")
    with pytest.raises(RunError, match=r"round was lost.*Nothing is lost"):
        run_leaving(run, lambda site, kind: site != "scanner-1" and kind == messages.TRAIN)
    run_study(run, Options(grid="local", workers=1))
    ours, theirs = weights_of(run), weights_of(serial("secure"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_shared_noise_is_charged_at_every_site_and_at_the_server(
    serial: Callable[[str], Path],
) -> None:
    arm = serial("shared noise") / "arms" / "federated"
    records = ArmFolder(arm).read_rounds()
    for number, record in enumerate(records, start=1):
        event = GaussianEvent(0.5, 1.0, number, mechanism="discrete_gaussian")
        expected = renyi_epsilon([event], 1e-3)
        assert record.site_epsilon == pytest.approx(expected, rel=1e-9)
        assert record.site_noise == "seeded"
        # Zero-concentrated: rho + 2 sqrt(rho log(1 / delta)) is a looser closed form.
        rho = number / (2 * 0.5**2)
        assert expected <= rho + 2 * math.sqrt(rho * math.log(1 / 1e-3))
    state = ArmFolder(arm).server_state(ArmFolder(arm).read_plan())
    folders = [state, *(arm / "sites" / f"scanner-{n}" / "state" for n in (1, 2, 3))]
    for folder in folders:
        spends = [entry.spend for entry in Ledger(folder).entries()]
        assert [spend.round_number for spend in spends] == [1, 2]
        assert {(s.unit, s.mechanism, s.noise, s.sample_rate) for s in spends} == {
            ("site", "discrete_gaussian", "seeded", 1.0)
        }


def test_shared_noise_moves_the_mean_by_as_much_as_it_says(
    prepare: Prepare, serial: Callable[[str], Path]
) -> None:
    # Zero learning: nothing but the noise is left of the update.
    run = prepare("shared noise", "training.rounds=1", "training.learning_rate=1e-30")
    run_study(run, Options(grid="local", workers=1))
    still = prepare(
        "secure",
        "training.rounds=1",
        "training.learning_rate=1e-30",
    )
    run_study(still, Options(grid="local", workers=1))
    noisy, start = weights_of(run), weights_of(still)
    noise = np.concatenate([(noisy[name] - start[name]).ravel() for name in start])
    # All three stay, two must: sqrt(3 / 2) times what is stated, over expected_sites = 3.
    expected = math.sqrt(3 / 2) * 0.5 * 0.5 / 3
    spread = 5 / math.sqrt(2 * noise.size)
    assert float(noise.std()) == pytest.approx(expected, rel=spread + 1e-3)
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(noise.size)


def test_masks_change_nothing_about_privacy_per_patient(
    prepare: Prepare, serial: Callable[[str], Path]
) -> None:
    run = prepare("private", "secure_aggregation.enabled=true")
    run_study(run, Options(grid="local", workers=1))
    ours, theirs = weights_of(run), weights_of(serial("private"))
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs) < 1e-5
    for site in (1, 2, 3):
        spends = [
            [entry.spend for entry in Ledger(arm / f"scanner-{site}" / "state").entries()]
            for arm in (r / "arms" / "federated" / "sites" for r in (run, serial("private")))
        ]
        assert [s.event for s in spends[0]] == [s.event for s in spends[1]]
        assert len(spends[0]) == 2


class _MadeUpWeight(ClientApp):
    """Hands one site a weight in the mean that the server made up."""

    def __call__(self, message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        if site == "scanner-2" and message.metadata.message_type == messages.TRAIN:
            message.content["medfed"]["weight"] = 39
        return client_app(message, context)


def test_site_refuses_a_weight_that_it_never_stated(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare("secure", "training.rounds=1")
    monkeypatch.setattr("medfed.simulations.study.client_app", _MadeUpWeight())
    run_study(run, Options(grid="local", workers=1))
    [record] = ArmFolder(run / "arms" / "federated").read_rounds()
    assert (record.sites["scanner-2"].status, record.sites["scanner-2"].reason) == (
        "refused",
        "study",
    )
    state = run / "arms" / "federated" / "sites" / "scanner-2" / "state"
    assert Ledger(state).entries() == ()
    assert {record.sites[name].status for name in ("scanner-1", "scanner-3")} == {"ok"}
