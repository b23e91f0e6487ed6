"""Work on a GPU recorded once as a CUDA graph and replayed after that.

A step of a small network is some hundred kernels of a few microseconds; starting them one by one
takes Python several times as long as running them. A graph starts them all at once. They are the
same kernels on the same numbers, so a step has the same bits, recorded or not.

Reference: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# More than a study has; each recording takes a little memory.
_MOST_SHAPES = 64

# Starting a recording waits for the whole GPU, which must not be recording for another thread then.
_one_at_a_time = threading.Lock()

# torch hands out so many in turn, and then the first again.
_NUM_STREAMS = 32
_taking = threading.Lock()
_taken: weakref.WeakSet[torch.cuda.Stream] = weakref.WeakSet()

# Each thread has its own network, one at a time (client.workspace).
_local = threading.local()

Made = TypeVar("Made")
Body = Callable[[], Tensor]
Replay = Callable[[], Any]
Recorder = Callable[[Body], tuple[Replay, Tensor]]
"""From work to (what does it again, where its result is after that)."""


@dataclass
class _Recording:
    arguments: tuple[Tensor, ...]
    replay: Replay
    result: Tensor


class Recorded:
    """A function of tensors, recorded for every shape of its arguments that comes twice.

    The first call with a shape runs as it is: libraries choose their kernels and take their
    workspaces then. The second is recorded. What cannot be recorded goes on running as it is.

    Args:
        function: What it reads and writes besides its arguments must stay where it is in memory
            for as long as this lives. It is never run for its own sake: each call runs it once.
            Not a method of what holds this: recordings are to go at once, with their memory.
        record: How; None to leave every call as it is.
    """

    def __init__(self, function: Callable[..., Tensor], record: Recorder | None) -> None:
        self._function = function
        self._record = record
        self._recordings: dict[tuple[Any, ...], _Recording | None] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return what the function returns; after a replay it is overwritten by the next one."""
        if self._record is None:
            return self._function(*arguments)
        shape = tuple((argument.shape, argument.dtype) for argument in arguments)
        if shape not in self._recordings:
            if len(self._recordings) < _MOST_SHAPES:
                self._recordings[shape] = None
            return self._function(*arguments)
        recording = self._recordings[shape]
        if recording is None:
            recording = self._new(self._record, arguments)
            if recording is None:
                return self._function(*arguments)
            self._recordings[shape] = recording
        for held, argument in zip(recording.arguments, arguments, strict=True):
            held.copy_(argument, non_blocking=True)
        recording.replay()
        return recording.result

    def _new(self, record: Recorder, arguments: tuple[Tensor, ...]) -> _Recording | None:
        held = tuple(argument.clone() for argument in arguments)
        function = self._function
        try:
            replay, result = record(lambda: function(*held))
        except BaseException as error:
            # Those of the same stream may not be replayed any more; see `_stream_of_its_own`.
            self._record = None
            self._recordings.clear()
            if not isinstance(error, RuntimeError):
                raise
            log.warning("Steps run one kernel at a time: they cannot be recorded (%s).", error)
            return None
        return _Recording(held, replay, result)


def kept(model: nn.Module, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
    """Return what this thread last made for `model` and `key`, or make it, and forget the last.

    One thing for all that is recorded: recordings hold the memory of a whole step.

    Args:
        model: The very network that recordings read and write.
        key: All else that what is recorded depends on; its first item says what it is.
        make: Makes it.
    """
    last: _Kept | None = getattr(_local, "kept", None)
    if last is None or last.model is not model or last.key != key:
        _local.kept = last = None  # first of all, so that its memory is free
        _local.kept = last = _Kept(model, key, make())
    made: Made = last.made
    return made


@dataclass(frozen=True)
class _Kept:
    model: nn.Module
    key: tuple[Any, ...]
    made: Any


def _stream_of_its_own(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream that no other recorder has; None if torch has none left.

    When a graph goes, torch frees what cuBLAS works in on the graph's stream: other graphs of that
    stream would go on using it (https://github.com/pytorch/pytorch/issues/193402).
    """
    with _taking:
        for _ in range(_NUM_STREAMS):
            stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if stream not in _taken:
                _taken.add(stream)
                return stream
    return None


def recorder(device: torch.device, *, enabled: bool = True) -> Recorder | None:
    """Return how work on `device` is recorded, or None if it is not."""
    if not enabled or device.type != "cuda":
        return None
    # One after the other, recordings of one function may use the same memory for what lies between.
    pool = torch.cuda.graph_pool_handle()

    stream = _stream_of_its_own(device)
    if stream is None:
        return None

    def record(body: Body) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may train other sites on this GPU meanwhile.
        recording = torch.cuda.graph(
            graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        )
        before = torch.cuda.current_stream(device)
        try:
            with _one_at_a_time, recording:
                result = body()
        finally:
            # Where a recording fails torch leaves the thread on the stream that was recorded.
            torch.cuda.set_stream(before)
        return graph.replay, result

    return record
