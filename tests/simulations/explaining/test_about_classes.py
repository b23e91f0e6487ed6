"""What the page says of a classification."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.common.study_file import parse_study
from medfed.common.tasks import Classification
from medfed.simulations.explaining.about_classes import about_classes
from medfed.simulations.explaining.load import Examination, Trained


class Mean(nn.Module):
    """Class a if the image is bright."""

    head = ()
    num_features = 1

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def grid(self, images: Tensor) -> Tensor:
        return 1.0 * images

    def forward(self, images: Tensor) -> Tensor:
        mean = self.slope * self.grid(images).mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1)


def explained(slope: float, mode: str = "multiclass") -> tuple[str, list[str]]:
    """The headline, and the caption of each class' map, of an image with one bright square."""
    study = parse_study(
        {
            "study": {"name": "tiny"},
            "task": {"classes": ["a", "b"], "mode": mode},
            "data": {"image_size": 30, "mean": 0.0, "std": 1.0},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
        },
        "the test's study",
    )
    pixels = np.zeros((1, 30, 30), dtype=np.uint8)
    pixels[0, 2:11, 2:11] = 255
    examination = Examination(("image",), pixels, np.ones(1, dtype=np.uint8), {}, {})
    task = Classification(study)
    trained = Trained("run", study, task, Mean(slope).eval(), "0")
    content = about_classes(trained, task, examination)
    return content.headline, [plate.caption for plate in content.plates[1:]]


def test_about_classes_never_rounds_to_certainty() -> None:
    headline, [caption] = explained(200.0)
    assert headline == "a, probability > 0.99"
    assert "> 0.999 →" in caption
    assert "1.00" not in caption


def test_about_classes_says_whether_the_place_matters() -> None:
    _, captions = explained(10.0)
    # The mean is 0.09: the odds are exp(2 * 10 * 0.09).
    assert captions[0].startswith("Brightest 10% covered: 0.858 →")
    assert captions[0].endswith("This place matters more than others.")
    assert captions[1] == "Nothing in the last layer speaks for this class."


@pytest.mark.parametrize(("slope", "expected"), [(10.0, "a"), (0.0, "a, b"), (-10.0, "b")])
def test_about_findings_names_those_from_one_half(slope: float, expected: str) -> None:
    assert explained(slope, "multilabel")[0] == expected
