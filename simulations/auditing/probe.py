"""Canary patients with known gradients, sent through the installed trainer's own path.

A patient's image lights one pixel; the model is one weight a pixel (and one number that no image
reaches), its loss is its output. So a patient's gradient is the patient's image, every coordinate
of what is released belongs to one canary or to nobody, and the whole release is known but for the
noise. There are two models: the trainer adds up clipped gradients in two ways, and chooses by the
model (`client.privacy.book_keeping`). Everything from sampling patients to the optimiser's step is
`client.training`'s own: nothing of it is copied here, so a fault anywhere on the way shows.

Shapes: R releases, D coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.client.privacy.book_keeping import keeps_books
from medfed.client.training import Round, train_with_privacy
from medfed.common.metrics import Families, MetricSums
from medfed.common.state_dicts import read_state
from medfed.common.study import PrivacySection, StudyConfig
from medfed.common.tasks import Batch, Examples
from medfed.common.tasks.protocol import Figure

SIZE = 64
NUM_COORDINATES = SIZE * SIZE + 1
"""A pixel each, and one parameter of dimension 0."""
LOUD = 1000.0
"""Length of a canary's gradient over max_grad_norm: clipping must cut it a thousandfold."""
BROKEN = 1
"""Label of an image whose loss, and so whose gradient, is not a number."""

Releases = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canary:
    """One patient: the pixel each of the patient's images lights, and whether it is broken."""

    pixels: tuple[int, ...]
    broken: bool = False


class Probe(nn.Module):
    """One weight a pixel in two parameters of unequal size, and one of dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.upper = nn.Parameter(torch.zeros(SIZE // 4, SIZE))
        self.lower = nn.Parameter(torch.zeros(SIZE - SIZE // 4, SIZE))
        self.silent = nn.Parameter(torch.zeros(()))

    def forward(self, images_B1HW: Tensor) -> Tensor:
        """Return the weighted sum of each image's pixels, [B]."""
        weights = torch.cat([self.upper, self.lower])
        return (images_B1HW[:, 0] * weights).sum(dim=(1, 2)) + 0.0 * self.silent


class BookProbe(nn.Module):
    """The same of linear layers, whose clipped gradients the trainer adds up by book-keeping.

    Of the image that lights one pixel, the layers see which column it is in and answer for the row.
    """

    images_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.upper = nn.Linear(SIZE, SIZE // 4, bias=False)
        self.lower = nn.Linear(SIZE, SIZE - SIZE // 4, bias=False)
        self.silent = nn.Linear(1, 1, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images_B1HW: Tensor) -> Tensor:
        """Return the weighted sum of each image's pixels, [B]."""
        images_BHW = images_B1HW[:, 0]
        columns_BW, lit_BH = images_BHW.sum(dim=1), (images_BHW.sum(dim=2) > 0).float()
        rows_BH = torch.cat([self.upper(columns_BW), self.lower(columns_BW)], dim=1)
        nothing_B = self.silent(torch.zeros_like(columns_BW[:, :1]))[:, 0]
        outputs_B: Tensor = (rows_BH * lit_BH).sum(dim=1) + nothing_B
        return outputs_B


class ProbeTask:
    """The loss of an image is the model's output, so that its gradient is the image."""

    num_outputs = 1
    figures: tuple[Figure, ...] = ()
    families: Families = MappingProxyType({})

    def targets(self, examples: Examples) -> Tensor:
        """Return 1.0 for a sound image, NaN for a broken one, [B]."""
        return torch.from_numpy(np.where(examples.labels == BROKEN, np.nan, 1.0)).float()

    def inputs(
        self, images: Tensor, extras: tuple[Tensor, ...], targets: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the images."""
        return (images,)

    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [B]."""
        return outputs * targets

    def evaluate(self, model: nn.Module, batch: Batch) -> MetricSums:
        """Return nothing: a probe predicts nothing."""
        return {}

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return nothing, as `evaluate`."""
        return {}

    def metrics(self, sums: MetricSums) -> dict[str, float]:
        """Return nothing, as `evaluate`."""
        return {}


@dataclass(frozen=True)
class Setting:
    """What is claimed of the mechanism under audit.

    Attributes:
        privacy: The study's own section, or a variation of it for one check.
        seed: Root seed of seeded noise and sampling.
        public_num_patients: What the site would state; None for the study's expected batch.
        by_books: Whether clipped gradients are added up by book-keeping, as for medfed's networks,
            or one patient at a time by vmap, as for those of other packages.
    """

    privacy: PrivacySection
    seed: int = 0
    public_num_patients: int | None = None
    by_books: bool = True

    @property
    def divisor(self) -> float:
        """The public expected batch, worked out here from the study's numbers alone."""
        if self.public_num_patients is None:
            return self.privacy.expected_batch_size
        return self.privacy.sample_rate * self.public_num_patients

    def with_privacy(self, **values: object) -> "Setting":
        """Return the setting with some of the privacy section's values replaced."""
        privacy = PrivacySection.model_validate({**self.privacy.model_dump(), **values})
        return replace(self, privacy=privacy)


def release(
    setting: Setting,
    data: ImageSet,
    *,
    round_number: int = 1,
    site: str = "audited",
    steps: int = 1,
    seeded: bool = False,
) -> Releases:
    """Train one round on the canaries and return what it released, [D], over max_grad_norm.

    This is the update that would leave the site, times the claimed divisor: per step, the sum of
    the clipped gradients plus noise of standard deviation noise_multiplier, if all is as claimed.
    """
    study = StudyConfig.model_validate(
        {
            "study": {"name": "audit", "seed": setting.seed},
            "task": {"classes": ["sound", "broken"]},
            "data": {
                "image_size": SIZE,
                "mean": 0.0,
                "std": 1 / (LOUD * setting.privacy.max_grad_norm),
            },
            "training": {"local_steps": steps, "learning_rate": 1.0, "momentum": 0.0},
            "privacy": setting.privacy.model_dump(),
        }
    )
    model = BookProbe() if setting.by_books else Probe()
    if keeps_books(model) != setting.by_books:
        raise AssertionError("The trainer does not add up the probe's gradients as it is to.")
    result = train_with_privacy(
        model,
        read_state(model),
        data,
        ProbeTask(),
        Round(study, site, round_number, torch.device("cpu")),
        seeded=seeded,
        public_num_patients=setting.public_num_patients,
    )
    flat = np.concatenate([result.update[name].reshape(-1) for name in result.update])
    return -flat.astype(np.float64) * setting.divisor / setting.privacy.max_grad_norm


def canaries(patients: Sequence[Canary]) -> ImageSet:
    """Return the patients as a site's training images, in order of pseudonym."""
    rows = [(p, pixel, c.broken) for p, c in enumerate(patients) for pixel in c.pixels]
    images = np.zeros((len(rows), 1, SIZE, SIZE), dtype=np.uint8)
    for row, (_, pixel, _) in enumerate(rows):
        images[row, 0, pixel // SIZE, pixel % SIZE] = 255
    num = len(rows)
    store = Store(
        folder=Path(),
        key="",
        classes=("sound", "broken"),
        mode="multiclass",
        images_NCHW=images,
        masks_NHW=None,
        labels=np.array([BROKEN * broken for _, _, broken in rows], dtype=np.int64),
        patients=tuple(f"{p:06d}" for p, _, _ in rows),
        splits=("",) * num,
        columns={},
        reports=("",) * num,
        record_ids=tuple(str(n) for n in range(num)),
        num_quarantined=0,
    )
    return ImageSet((store,), np.zeros(num, dtype=np.int64), np.arange(num))


def one_pixel_each(num_patients: int) -> ImageSet:
    """Return patients of one image; patient i reaches coordinate i alone."""
    return canaries([Canary((pixel,)) for pixel in range(num_patients)])
