"""Figures drawn in two processes: the same bytes, also when the other one dies or says nothing."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from medfed.simulations.reporting import beside
from medfed.simulations.reporting.beside import Beside, Drawings, draw_all
from medfed.simulations.reporting.details import Plots
from medfed.simulations.reporting.drawing import new_figure


def _line(slope: int) -> Figure:
    figure, axes = new_figure(3, 2)
    axes.plot([0, slope], label=str(slope))
    axes.legend()
    return figure


def _plots() -> Plots:
    return {
        **{f"line-{slope}": (f"Slope {slope}.", partial(_line, slope)) for slope in range(4)},
        "nothing": ("Nothing to show.", lambda: None),
    }


def draw_in_two(plots: Plots) -> Drawings:
    with Beside(plots, in_two=True) as figures:
        return figures.finish()


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    def noted(name: str, slope: int) -> Figure:
        with (tmp_path / "drawn").open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        time.sleep(0.3)  # long enough for the other process to take the next
        return _line(slope)

    names = [f"slow-{slope}" for slope in range(6)]
    slow = {name: ("Slow.", partial(noted, name, slope)) for slope, name in enumerate(names)}
    drawn = draw_in_two({**slow, **_plots()})
    lines = [line.split() for line in (tmp_path / "drawn").read_text().splitlines()]
    assert sorted(name for name, _ in lines) == names  # each once
    assert len({process for _, process in lines}) == 2
    assert drawn == draw_all({**slow, **_plots()})
    assert list(drawn) == [*names, *_plots()]


def _die(there: Connection, plots: Plots, tickets: int) -> None:
    os.read(tickets, 2)  # a figure that it does not draw
    os._exit(3)


def _sleep(there: Connection, plots: Plots, tickets: int) -> None:
    os.read(tickets, 2)
    time.sleep(600)


@pytest.mark.parametrize("fate", [_die, _sleep])
def test_what_does_not_come_is_drawn_here(
    fate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "_send", fate)
    monkeypatch.setattr(beside, "_PATIENCE_S", 0.2)
    began = time.monotonic()
    assert draw_in_two(_plots()) == draw_all(_plots())
    assert time.monotonic() - began < 300


def test_the_other_process_draws_while_this_one_does_something_else(tmp_path: Path) -> None:
    def noted(slope: int) -> Figure:
        (tmp_path / f"{slope}").write_text(str(os.getpid()))
        return _line(slope)

    plots: Plots = {f"line-{slope}": ("A line.", partial(noted, slope)) for slope in range(4)}
    with Beside(plots, in_two=True) as figures:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {path.read_text() for path in tmp_path.iterdir()} != {str(os.getpid())}
        assert figures.finish() == draw_all(plots)
    with Beside(plots, in_two=False) as figures:
        assert figures.finish() == draw_all(plots)
    assert {path.read_text() for path in tmp_path.iterdir()} == {str(os.getpid())}


def test_ctrl_c_is_for_the_first_process_to_answer(tmp_path: Path) -> None:
    def slow(number: int) -> Figure:
        (tmp_path / f"{number} {os.getpid()}").touch()
        time.sleep(0.2)
        return _line(number)

    plots: Plots = {f"slow-{number}": ("Slow.", partial(slow, number)) for number in range(4)}
    with Beside(plots, in_two=True) as figures:
        deadline = time.monotonic() + 60
        while not (begun := list(tmp_path.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.01)
        other = int(begun[0].name.split()[1])
        os.kill(other, signal.SIGINT)
        assert figures.finish() == draw_all(plots)
    drawn_there = [path for path in tmp_path.iterdir() if int(path.name.split()[1]) == other]
    assert len(drawn_there) > 1


KILLED = """
import os, signal, sys, time
from pathlib import Path
from matplotlib.figure import Figure
from medfed.simulations.reporting.beside import Beside

def plot():
    Path(sys.argv[1], str(os.getpid())).touch()
    while not Path(sys.argv[1], "go on").exists():
        time.sleep(0.01)
    figure = Figure()
    # More than a pipe holds.
    figure.add_subplot().plot([(number * 7919) % 1000 for number in range(9000)])
    return figure

figures = Beside({f"plot-{number}": ("A plot.", plot) for number in range(4)}, in_two=True)
while not list(Path(sys.argv[1]).iterdir()):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_other_process_ends_when_the_first_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    [other] = [int(path.name) for path in tmp_path.iterdir()]
    os.kill(other, 0)  # still there, without the first
    (tmp_path / "go on").touch()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{other}").exists()


def test_leaving_early_ends_the_other_process() -> None:
    def endless() -> Figure:
        time.sleep(600)
        raise AssertionError

    plots: Plots = {f"endless-{number}": ("Never.", endless) for number in range(4)}
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="of this one"), Beside(plots, in_two=True):
        raise RuntimeError("of this one")
    assert time.monotonic() - began < 300
    assert multiprocessing.active_children() == []
