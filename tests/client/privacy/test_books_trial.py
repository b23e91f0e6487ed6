"""Networks whose rows are not patient by patient are found before book-keeping trains them.

Shapes: N images, T rows of an image as words, D numbers of a word.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfed.client.privacy.book_keeping import keeps_books
from medfed.client.privacy.books_trial import check_books
from medfed.common.errors import StudyError
from medfed.common.models import build_model
from medfed.common.plugins.apart import check_images_apart
from medfed.common.study import StudyConfig
from medfed.common.tasks import Classification, make_task

STUDY = StudyConfig.model_validate(
    {
        "study": {"name": "test"},
        "task": {"classes": ["a", "b", "c"]},
        "data": {"image_size": 16},
        "training": {"local_steps": 1},
    }
)


class Words(nn.Module):
    """Logits of 16 x 16 pixels, whose rows are words; it mixes no images."""

    images_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.first(images[:, 0]))).mean(dim=1)
        return logits


class WordsFirst(Words):
    """Layers are called with [T, N, D], as recurrent layers and attention are by default."""

    def forward(self, images: Tensor) -> Tensor:
        words_TND = images[:, 0].transpose(0, 1)
        logits: Tensor = self.last(torch.tanh(self.first(words_TND))).mean(dim=0)
        return logits


class Positions(Words):
    """A table of positions is looked up once for all images."""

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self.places = nn.Embedding(num_positions, 16)

    def forward(self, images: Tensor) -> Tensor:
        places = self.places(torch.arange(self.places.num_embeddings))
        logits: Tensor = self.last(torch.tanh(self.first(images[:, 0, : len(places)] + places)))
        return logits.mean(dim=1)


class SharedInSilence(Words):
    """A table of words is the last layer's weight, too."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 6)
        self.words = nn.Embedding(3, 6)

    def forward(self, images: Tensor) -> Tensor:
        words = self.words((images[:, 0, 0] > 0).long() + 1)
        seen = torch.tanh(self.last(self.first(images[:, 0]) + words))
        logits: Tensor = F.linear(seen.mean(dim=1), self.words.weight)
        return logits


@pytest.mark.parametrize(
    "make",
    [WordsFirst, lambda: Positions(8), lambda: Positions(7), SharedInSilence],
    ids=["words first", "positions", "odd positions", "shared table"],
)
def test_network_whose_rows_are_not_by_patient_is_refused(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, task = make(), Classification(STUDY)
    # All that the other trial asks, it does.
    check_images_apart(model, task, STUDY)
    assert keeps_books(model)
    with pytest.raises(StudyError, match="Without images_apart it is trained all the same"):
        check_books(model, task, STUDY)


def test_network_of_images_in_rows_passes() -> None:
    torch.manual_seed(0)
    model = Words()
    assert keeps_books(model)
    check_books(model, Classification(STUDY), STUDY)
    task = make_task(STUDY)
    check_books(build_model(STUDY, task.num_outputs), task, STUDY)
