"""Attention of each word, enlarged to the image."""

import numpy as np
import pytest
import torch

from medfed.common.models import build_model
from medfed.common.study_file import parse_study
from medfed.common.tasks import Report, make_task
from medfed.simulations.explaining.report import explain_report, upsampled

WORDS = (".", "clear", "effusion", "heart", "lungs", "no", "the")
FINDINGS = {"effusion": ("effusion",)}
STUDY = parse_study(
    {
        "study": {"name": "tiny", "seed": 3},
        "task": {"type": "report", "report": {"max_words": 12, "findings": FINDINGS}},
        "model": {"name": "report_lstm"},
        "data": {"image_size": 32},
        "training": {"local_steps": 1},
        "privacy": {"unit": "none"},
    },
    "the test's study",
)


@pytest.mark.parametrize(("grid", "shape"), [((2, 3), (8, 12)), ((2, 2, 3), (4, 6, 9))])
def test_upsampled_keeps_constants_and_one_scale(
    grid: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    attention = torch.stack([torch.full(grid, 0.2), torch.full(grid, 0.1)])
    maps = upsampled(attention, shape)
    assert maps.shape == (2, *shape)
    np.testing.assert_allclose(maps[0], 1, atol=1e-6)
    np.testing.assert_allclose(maps[1], 0.5, atol=1e-6)


def test_upsampled_puts_the_peak_where_the_cell_is() -> None:
    attention = torch.zeros(1, 4, 4)
    attention[0, 1, 2] = 1.0
    [values] = upsampled(attention, (16, 16))
    # The cell covers rows 4 to 7 and columns 8 to 11.
    assert np.argwhere(values > 0.7).tolist() == [[5, 9], [5, 10], [6, 9], [6, 10]]
    assert values[:2].max() == 0
    assert values.max() == pytest.approx((7 / 8) ** 2)


def test_upsampled_takes_a_report_without_words() -> None:
    assert upsampled(torch.zeros(0, 4, 4), (16, 16)).shape == (0, 16, 16)


def test_explain_report_has_a_map_for_each_word() -> None:
    task = make_task(STUDY, WORDS)
    assert isinstance(task, Report)
    model = build_model(STUDY, task.num_outputs).eval()
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    explained = explain_report(model, task, image, FINDINGS)
    [written] = task.write(model, image)
    words = [word.word for word in explained.words]
    assert words == task.vocabulary.tokens(written.tokens)
    assert len(words) > 0
    assert explained.text == task.vocabulary.decode(written.tokens)
    assert {word.attention.shape for word in explained.words} == {(32, 32)}
    assert explained.grid == tuple(written.attention.shape[1:])
    peaks = [float(word.attention.max()) for word in explained.words]
    assert 0 < min(peaks) <= max(peaks) <= 1.0001


def test_explain_report_names_findings_that_are_not_denied() -> None:
    task = make_task(STUDY, WORDS)
    assert isinstance(task, Report)
    model = build_model(STUDY, task.num_outputs).eval()
    # The word that the last layer always prefers.
    model.output.bias.data[task.vocabulary.encode("effusion", 1)[1]] = 50.0  # type: ignore[union-attr]
    explained = explain_report(model, task, torch.zeros(1, 1, 32, 32), FINDINGS)
    assert explained.findings == {"effusion": True}
