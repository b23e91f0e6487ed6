"""How unsure a model is, in closed form; and labels that an annotator has given."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from patients import Image, images_of, study_of

from medfed.client.annotating import uncertainty, with_labels
from medfed.client.data.site_data import SiteData


def test_entropy_and_margin_of_classes_that_exclude_one_another() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.7, 0.2, 0.1]], dtype=torch.float64)
    entropies = uncertainty(shares, "entropy", exclusive=True).tolist()
    third = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert entropies == pytest.approx([math.log(2), 0.0, third])
    assert uncertainty(shares, "margin", exclusive=True).tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_questions_of_their_own_and_pixels_count_by_their_mean() -> None:
    # [N, L, W]: one structure, two pixels.
    shares = torch.tensor([[[0.5, 1.0]], [[0.9, 0.9]]], dtype=torch.float64)
    expected = [math.log(2) / 2, -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]
    assert uncertainty(shares, "entropy", exclusive=False).tolist() == pytest.approx(expected)
    margins = uncertainty(shares, "margin", exclusive=False).tolist()
    assert margins == pytest.approx([0.5, 0.2])


def test_labels_of_a_patient_come_with_all_of_the_patients_images() -> None:
    study = study_of()
    people = [Image(name, (number % 3,), 10 * number) for number, name in enumerate("abcbdc")]
    every = images_of(people, study)

    def rows(*chosen: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(chosen), np.int64), np.array(chosen)

    parts = [
        replace(every, store_index=stores, row_index=own)
        for stores, own in (rows(0), rows(4), rows(1, 2, 3, 5))
    ]
    data = SiteData(parts[0], parts[1], replace(parts[2], unlabelled=True))
    assert data.unlabelled is not None
    assert data.unlabelled.labels.tolist() == [0, 0, 0, 0]
    given = with_labels(data, ["c"])
    assert given.unlabelled is not None
    assert given.train.row_index.tolist() == [0, 2, 5]
    assert given.train.labels.tolist() == [0, 2, 2]
    assert given.unlabelled.row_index.tolist() == [1, 3]
    assert with_labels(data, ["c", "b"]).unlabelled is None
