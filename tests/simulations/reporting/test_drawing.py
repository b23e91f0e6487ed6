from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medfed.common.metrics import classification_metrics, classification_sums
from medfed.simulations.reporting.drawing import (
    INK,
    MAX_ROWS,
    draw,
    new_figure,
    short,
    some_of,
    spread,
)
from medfed.simulations.reporting.model_plots import roc_points
from medfed.simulations.reporting.tables import num_bytes, seconds, small, whole


@given(st.lists(st.floats(-5, 5), max_size=12), st.floats(0.01, 1))
def test_spread_keeps_labels_apart_and_in_order(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    gaps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(value >= gap * (1 - 1e-6) for value in gaps)
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


def test_spread_leaves_what_is_apart_alone() -> None:
    assert spread([3.0, 1.0, 2.0], 0.9) == [3.0, 1.0, 2.0]
    assert spread([1.0, 1.0], 1.0) == [0.5, 1.5]


def test_figures_of_very_many_sites_show_some_at_even_steps() -> None:
    assert some_of([3.0, 1.0, 2.0]) == ([0, 1, 2], "")
    values = [float(v) for v in np.random.default_rng(0).permutation(1000)]
    shown, note = some_of(values)
    kept = [values[index] for index in shown]
    assert len(set(shown)) == MAX_ROWS
    assert kept[0] == 999.0
    assert kept[-1] == 0.0
    assert {round(a - b) for a, b in pairwise(kept)} <= {21, 22}
    assert note.startswith(f"{MAX_ROWS} of 1\u202f000 sites")


def test_roc_has_the_area_that_the_metrics_state() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 300)
    probabilities = rng.dirichlet(np.ones(3), 300)
    probabilities[np.arange(300), labels] += 0.4
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    sums = classification_sums(probabilities, labels, np.ones(300), "multiclass")
    metrics = classification_metrics(sums, ("a", "b", "c"))
    for index, name in enumerate("abc"):
        points = roc_points(sums["scores"][index])
        assert points is not None
        assert np.trapezoid(points[1], points[0]) == pytest.approx(metrics[f"auroc/{name}"])


def test_roc_is_none_without_both_kinds_of_image() -> None:
    histogram = np.zeros((2, 1024), dtype=np.int64)
    histogram[1, 5] = 3
    assert roc_points(histogram) is None


def _example():  # type: ignore[no-untyped-def]
    figure, axes = new_figure(4, 3)
    axes.plot([0, 1], [0, 1], color=INK["blue"], label="a <b> & #0072b2")
    axes.set_title("a <b> & #0072b2")
    axes.legend()
    return figure


def test_drawing_is_deterministic_and_follows_the_pages_colours() -> None:
    first, second = draw("x", "an x", _example), draw("x", "an x", _example)
    assert first is not None
    assert first == second
    assert b"<dc:date>" not in first.svg
    assert "var(--blue)" in first.inline
    assert "http" not in first.inline
    assert "a &lt;b&gt; &amp; #0072b2" in first.inline  # text stays, though it names a colour
    assert Image.open(BytesIO(first.png)).size == (440, 330)


def test_drawing_of_nothing_is_none() -> None:
    assert draw("x", "nothing", lambda: None) is None


def test_short_makes_one_visible_line() -> None:
    assert short("a\nb  c") == "a b c"
    assert short("x" * 40, 10) == "x" * 9 + "…"
    assert not short("_hidden").startswith("_")


def test_numbers_read_well() -> None:
    assert [num_bytes(n) for n in (0, 999, 1000, 59_870_900, 501_000)] == [
        *("0 B", "999 B", "1.00 kB", "59.9 MB", "501 kB")
    ]
    assert [seconds(s) for s in (0.42, 12.34, 185.2, 7500, None)] == [
        *("0.42 s", "12.3 s", "3 min 05 s", "2 h 05 min", "\u2013")
    ]
    assert [small(x) for x in (1e-5, 2.5e-4, 0.1, 1e-12)] == ["1e-5", "2.5e-4", "0.1", "1e-12"]
    assert whole(12345.0) == "12\u202f345"
