"""What is recorded and when; the graph itself needs a GPU (test_gpu.py)."""

import logging
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

from medfed.client.recording import Body, Recorded, Replay, kept, recorder


class Rerun:
    """A recorder for a CPU: a replay runs the work again on the arguments' held memory."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, body: Body) -> tuple[Replay, Tensor]:
        self.recorded += 1
        result = torch.zeros(3)

        def replay() -> None:
            self.replayed += 1
            result.copy_(body())

        return replay, result


def refusing(body: Body) -> tuple[Replay, Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing")


class Running:
    """Adds what it is given to a total, and counts how often it ran."""

    def __init__(self) -> None:
        self.total = torch.zeros(3)
        self.runs = 0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        self.runs += 1
        self.total += first.sum() * second
        return self.total.clone()


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator), torch.randn(3, generator=generator)


def test_recorded_gives_what_the_function_gives_and_runs_it_once_a_call() -> None:
    plain, inner, rerun = Running(), Running(), Rerun()
    recorded = Recorded(inner, rerun)
    for seed, count in enumerate([4, 4, 2, 4, 2, 2, 4]):
        arguments = rows(count, seed)
        expected = plain(*arguments)
        assert torch.equal(recorded(*arguments), expected)
    assert inner.runs == 7
    assert torch.equal(inner.total, plain.total)
    # Each of two shapes once as it is; then recorded, and replayed from there on.
    assert (rerun.recorded, rerun.replayed) == (2, 5)


def test_recorded_leaves_what_it_was_given_alone() -> None:
    def spoil(first: Tensor, second: Tensor) -> Tensor:
        return first.zero_()[:3] + second

    recorded = Recorded(spoil, Rerun())
    recorded(*rows(3, 0))
    arguments = rows(3, 1)
    before = arguments[0].clone()
    recorded(*arguments)
    assert torch.equal(arguments[0], before)


def test_recorded_tells_types_apart() -> None:
    rerun = Rerun()
    recorded = Recorded(lambda first: first.float()[:3], rerun)
    for kind in (torch.float32, torch.int64, torch.float32, torch.int64):
        assert torch.equal(recorded(torch.tensor([1, 2, 3], dtype=kind)), torch.tensor([1.0, 2, 3]))
    assert rerun.recorded == 2


def test_recorded_goes_on_when_the_work_cannot_be_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, inner = Running(), Running()
    recorded = Recorded(inner, refusing)
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            assert torch.equal(recorded(*rows(4, seed)), plain(*rows(4, seed)))
    assert inner.runs == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("error", [RuntimeError, KeyError])
def test_nothing_is_replayed_after_a_recording_that_failed(error: type[Exception]) -> None:
    """torch takes memory from the other recordings of the stream when a failed one goes."""
    rerun = Rerun()

    def record(body: Body) -> tuple[Replay, Tensor]:
        if rerun.recorded:
            raise error("in the work")
        return rerun(body)

    plain, inner = Running(), Running()
    recorded = Recorded(inner, record)
    for seed in range(3):
        assert torch.equal(recorded(*rows(4, seed)), plain(*rows(4, seed)))
    assert torch.equal(recorded(*rows(2, 0)), plain(*rows(2, 0)))
    if error is RuntimeError:
        assert torch.equal(recorded(*rows(2, 1)), plain(*rows(2, 1)))
    else:
        with pytest.raises(error):
            recorded(*rows(2, 1))
    assert torch.equal(recorded(*rows(4, 9)), plain(*rows(4, 9)))
    assert (rerun.recorded, rerun.replayed) == (1, 2)


def test_recorder_is_for_gpus() -> None:
    assert recorder(torch.device("cpu")) is None
    assert recorder(torch.device("cuda"), enabled=False) is None


def test_what_is_kept_is_of_one_network_and_key_and_goes_before_the_next_is_made() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    steps = kept(model, ("steps", 1), Running)
    assert kept(model, ("steps", 1), Running) is steps
    gone = weakref.ref(steps)
    del steps

    def make() -> Running:
        assert gone() is None
        return Running()

    sums = kept(model, ("sums", 1), make)
    assert kept(model, ("steps", 1), Running) is not sums
    anew = kept(other, ("steps", 1), Running)
    assert kept(other, ("steps", 1), Running) is anew
    found = []
    thread = threading.Thread(target=lambda: found.append(kept(other, ("steps", 1), Running)))
    thread.start()
    thread.join()
    assert found[0] is not anew


class FewStreams:
    """Stands for torch's streams: three, handed out in turn, equal if they are the same."""

    made = 0

    def __init__(self, device: torch.device) -> None:
        self.number = FewStreams.made % 3
        FewStreams.made += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FewStreams) and other.number == self.number

    def __hash__(self) -> int:
        return self.number


def test_no_two_recorders_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", FewStreams)
    gpu = torch.device("cuda")
    first, *others = [recorder(gpu) for _ in range(3)]
    assert first is not None
    assert None not in others
    assert recorder(gpu) is None
    del first
    assert recorder(gpu) is not None
