"""Figures drawn in two processes: the same bytes, also when the other one dies or says nothing."""

import os
import time
from collections.abc import Callable
from functools import partial

import pytest
from matplotlib.figure import Figure

from medfed.simulations.reporting import beside
from medfed.simulations.reporting.beside import draw_all, draw_in_two
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


def test_two_processes_draw_what_one_draws() -> None:
    here = os.getpid()
    drawn_at = []

    def noted() -> Figure:
        drawn_at.append(os.getpid())
        return _line(9)

    plots = {**_plots(), "other": ("Drawn beside.", noted)}
    drawn = draw_in_two(plots)
    assert drawn_at == []  # it was not drawn here
    assert drawn == draw_all(plots)
    assert drawn_at == [here]
    assert list(drawn) == list(plots)


def _die(*ignored: object) -> None:
    os._exit(3)


def _sleep(*ignored: object) -> None:
    time.sleep(600)


@pytest.mark.parametrize("fate", [_die, _sleep])
def test_half_that_does_not_come_is_drawn_here(
    fate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "_send", fate)
    monkeypatch.setattr(beside, "_PATIENCE_S", 0.2)
    began = time.monotonic()
    assert draw_in_two(_plots()) == draw_all(_plots())
    assert time.monotonic() - began < 300
