"""Prepares records in several processes and hands the results on in their order.

Processes, because decoding small images spends most of its time in Python: threads were no faster
than one (HAM10000, 200x150: 1.0x on two cores) or slower (DICOM: 0.7x). They are forked: readers
may be of any kind and may hold arrays of gigabytes, which forks share and nobody pickles; what a
fork can inherit that hangs is OpenMP's threads, and a worker computes with one thread, as those of
torch's DataLoader do. Nothing but bytes and JSON comes back.

A decoder that crashes on a file takes its worker with it, not the preparation: the record is
refused with that reason, and another worker takes over.
"""

import ctypes
import json
import logging
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from medfed.client.data.preparing import Prepared, Refused
from medfed.client.data.records import SourceRecord
from medfed.common.errors import RunError

log = logging.getLogger(__name__)

Prepare = Callable[[SourceRecord], Prepared | Refused]

# Records that a worker has at hand, so that it never waits for the next; and how many results may
# wait for one that is slow.
_AHEAD = 2
_WINDOW = 4
_PATIENCE_S = 5.0
# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# How a program ends that does what it must not. (A kill, -9, is somebody's decision.)
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}
)


def prepared_in_order(
    records: Sequence[SourceRecord], first: int, prepare: Prepare, workers: int
) -> Generator[Prepared | Refused, None, None]:
    """Yield what `prepare` makes of records `first` and following, in this order.

    Args:
        records: All of them.
        first: The first that is wanted.
        prepare: Must raise nothing on a record that cannot be used.
        workers: Processes; 1 for this one alone.

    Raises:
        RunError: A worker was killed, or a reader failed in a way that it must not.
    """
    _keep_memory()
    workers = min(workers, len(records) - first)
    if workers <= 1:
        yield from (prepare(record) for record in records[first:])
        return
    with closing(_Crew(records, prepare, workers)) as crew:
        yield from crew.results(first)


class _Worker:
    """A process, our end of the line to it, and what it was given and has not answered."""

    def __init__(
        self, records: Sequence[SourceRecord], prepare: Prepare, others: Sequence["_Worker"]
    ) -> None:
        context = get_context("fork")
        self.line, far = context.Pipe()
        # A fork inherits our ends; while one is open anywhere, its worker outlives this process.
        ours = [self.line, *(other.line for other in others)]
        self.process = context.Process(
            target=_serve, args=(far, ours, records, prepare), name="prepare", daemon=True
        )
        self.process.start()
        far.close()
        self.given: deque[int] = deque()

    def give(self, number: int) -> None:
        self.given.append(number)
        # One that has ended may have answered before: reading its line finds out.
        with suppress(OSError):
            self.line.send_bytes(str(number).encode())

    def end(self) -> None:
        self.line.close()
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _Crew:
    def __init__(self, records: Sequence[SourceRecord], prepare: Prepare, workers: int) -> None:
        self._records, self._prepare = records, prepare
        self._workers: list[_Worker] = []
        self._waiting: deque[int] = deque()
        self._results: dict[int, Prepared | Refused] = {}
        for _ in range(workers):
            self._hire()

    def results(self, first: int) -> Generator[Prepared | Refused, None, None]:
        self._waiting = deque(range(first, len(self._records)))
        for number in range(first, len(self._records)):
            while number not in self._results:
                self._give_out(number + _WINDOW * len(self._workers))
                self._collect()
            yield self._results.pop(number)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()

    def _hire(self) -> None:
        self._workers.append(_Worker(self._records, self._prepare, self._workers))

    def _give_out(self, end: int) -> None:
        """Give every worker something to do, of the records before `end`."""
        for _ in range(_AHEAD):
            for worker in self._workers:
                if len(worker.given) < _AHEAD and self._waiting and self._waiting[0] < end:
                    worker.give(self._waiting.popleft())

    def _collect(self) -> None:
        """Take in what is there; wait until something is."""
        of_line = {worker.line: worker for worker in self._workers}
        for line in wait(list(of_line)):
            assert isinstance(line, Connection)
            worker = of_line[line]
            try:
                answer = _receive(line)
            except (EOFError, OSError):
                self._bury(worker)
                continue
            number = worker.given.popleft()
            if isinstance(answer, str):
                raise RunError(
                    f"{self._records[number].source}: its reader failed in a way that it must "
                    f"not: {answer}. This is a fault of medfed: please report it. What is done "
                    "is kept; leave the file out to go on."
                )
            self._results[number] = answer

    def _bury(self, worker: _Worker) -> None:
        """A worker has ended: refuse what it crashed on, give back the rest, hire another."""
        self._workers.remove(worker)
        worker.end()
        code = worker.process.exitcode or 0
        if not worker.given or -code not in _CRASHES:
            raise RunError(
                f"A process that prepares images was ended ({_how(code)}). If that was for want "
                "of memory, use fewer --workers. What is done is kept: run the command again."
            )
        number = worker.given.popleft()
        source = self._records[number].source
        reason = (
            f"{source}: the decoder crashed on it ({_how(code)}). The file is damaged, or of a "
            "kind that the installed decoder cannot take. Export it again, or leave it out."
        )
        log.warning("A decoder crashed (%s); its record is set aside.", _how(code))
        self._results[number] = Refused(source, reason)
        self._waiting.extendleft(reversed(worker.given))
        self._hire()


def _keep_memory() -> None:
    """Let the C library keep what one image frees for the next, a few dozen MB.

    It otherwise gives large blocks back to the kernel, which clears every page of them anew: half
    the time of decoding a photograph. These are the values that glibc itself moves to in a process
    that uses blocks of this size; elsewhere there is no such call, and nothing is lost.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _receive(line: Connection) -> Prepared | Refused | str:
    """Return an answer, or what went wrong in the worker."""
    head: dict[str, Any] = json.loads(line.recv_bytes())
    if "failure" in head:
        return str(head["failure"])
    if "reason" in head:
        return Refused(head["source"], head["reason"])
    arrays = [
        np.frombuffer(line.recv_bytes(), dtype=np.uint8).reshape(shape) for shape in head["shapes"]
    ]
    return Prepared(head["row"], arrays[0], arrays[1] if len(arrays) > 1 else None)


def _serve(
    line: Connection,
    inherited: Sequence[Connection],
    records: Sequence[SourceRecord],
    prepare: Prepare,
) -> None:
    """What a worker does: answer numbers until the other end is closed."""
    # Ctrl-C is for the process that this works for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    try:
        while True:
            _send(line, records[int(line.recv_bytes())], prepare)
    except (EOFError, ConnectionError):
        return


def _send(line: Connection, record: SourceRecord, prepare: Prepare) -> None:
    try:
        answer = prepare(record)
    except Exception as error:
        line.send_bytes(json.dumps({"failure": f"{type(error).__name__}: {error}"}).encode())
        return
    if isinstance(answer, Refused):
        refusal = {"source": answer.source, "reason": answer.reason}
        line.send_bytes(json.dumps(refusal).encode())
        return
    arrays = [answer.image] if answer.mask is None else [answer.image, answer.mask]
    head = {"row": answer.row, "shapes": [array.shape for array in arrays]}
    line.send_bytes(json.dumps(head).encode())
    for array in arrays:
        line.send_bytes(np.ascontiguousarray(array).reshape(-1).data)
