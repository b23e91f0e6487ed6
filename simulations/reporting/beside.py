"""`Beside`: some of the figures in a process beside this one.

matplotlib draws in Python, one thread at a time, and a report of many sites takes as long as a
short round. The other process is forked: it has everything in memory, touches neither torch nor a
GPU, and sends what it drew as JSON. It begins at once, while this one may do something else first;
then whoever has drawn one figure takes the next. Whatever goes wrong with the other process, what
it took is drawn here.

Weighed: threads (they wait for one another), and a process started with the run, which would cost
two seconds of imports and 230 MB for all of it.
"""

import base64
import json
import logging
import os
import signal
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from medfed.simulations.reporting.details import Plots
from medfed.simulations.reporting.drawing import Drawing, draw

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0
_FEWEST = 4  # fewer are not worth a process
_TICKET_BYTES = 2

Drawings = dict[str, Drawing | None]


class Beside:
    """Figures that are being drawn, or not before `finish` unless `in_two`.

    Leaving the context ends the other process.
    """

    def __init__(self, plots: Plots, *, in_two: bool) -> None:
        self._plots = plots
        self._other: BaseProcess | None = None
        if not in_two or len(plots) < _FEWEST:
            return
        context = get_context("fork")
        self._here, there = context.Pipe(duplex=False)
        self._tickets = _tickets(len(plots))
        other = context.Process(
            target=_draw_there, args=(self._here, there, plots, self._tickets), daemon=True
        )
        with warnings.catch_warnings():
            # From Python 3.12: that other threads are not copied. None of them draws.
            warnings.simplefilter("ignore", DeprecationWarning)
            other.start()
        there.close()
        self._other = other

    def finish(self) -> Drawings:
        """Draw what is left here; return every figure, in the order of `plots`.

        Each is the same wherever it was drawn.
        """
        drawn: Drawings = {}
        if self._other is not None:
            drawn = _draw_some(self._plots, self._tickets)
            drawn |= _received(self._here)
        drawn |= draw_all({name: self._plots[name] for name in self._plots if name not in drawn})
        return {name: drawn[name] for name in self._plots}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._other is not None:
            os.close(self._tickets)
            self._here.close()
            self._other.kill()
            self._other.join()


def draw_all(plots: Plots) -> Drawings:
    """Draw every figure in this process."""
    return {name: draw(name, text, plot) for name, (text, plot) in plots.items()}


def _tickets(count: int) -> int:
    """Return a pipe from which each process takes the number of the figure that it draws next."""
    taken, given = os.pipe()
    os.write(given, b"".join(number.to_bytes(_TICKET_BYTES) for number in range(count)))
    os.close(given)
    return taken


def _draw_some(plots: Plots, tickets: int) -> Drawings:
    names = list(plots)
    drawn: Drawings = {}
    while ticket := os.read(tickets, _TICKET_BYTES):
        name = names[int.from_bytes(ticket)]
        drawn |= draw_all({name: plots[name]})
    return drawn


def _draw_there(here: Connection, there: Connection, plots: Plots, tickets: int) -> None:
    # Ctrl-C reaches both: the first process says that it stops, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # If the first is killed nobody reads: with its end closed here too, sending fails at once.
    here.close()
    with suppress(BrokenPipeError):
        _send(there, plots, tickets)


def _send(there: Connection, plots: Plots, tickets: int) -> None:
    drawn = _draw_some(plots, tickets)
    tables = {name: drawing and _to_table(drawing) for name, drawing in drawn.items()}
    there.send_bytes(json.dumps(tables).encode())


def _received(here: Connection) -> Drawings:
    """Return what the other process drew; nothing if it did not come."""
    try:
        if here.poll(_PATIENCE_S):
            table = json.loads(here.recv_bytes())
            return {name: _from_table(one) if one else None for name, one in table.items()}
        log.warning("The other process' figures did not come in %g s.", _PATIENCE_S)
    except (EOFError, OSError) as error:
        log.warning("The other process' figures did not come: %s", type(error).__name__)
    return {}


def _to_table(drawing: Drawing) -> dict[str, Any]:
    files = {name: base64.b64encode(getattr(drawing, name)).decode() for name in ("svg", "png")}
    return asdict(drawing) | files


def _from_table(table: Mapping[str, Any]) -> Drawing:
    files = {name: base64.b64decode(table[name]) for name in ("svg", "png")}
    return Drawing(**{**table, **files})
