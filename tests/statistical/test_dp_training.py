"""What a site's private round draws: the stated rate, the stated noise, and not those of an error.

The operating system's generator cannot be seeded, so bounds are 6 standard deviations.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chi2, kstest, norm
from torch import Tensor, nn

from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.client.privacy.dp_sgd import NoisyOptimizer, PatientBatch, dp_step
from medfed.client.privacy.noise import SecureNoise
from medfed.client.training import Round, train_with_privacy
from medfed.common.state_dicts import read_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task

SIGMAS = 6.0
FALSE_ALARM = 2e-9


@dataclass(frozen=True)
class WatchedImages(ImageSet):
    """Images that remember who was asked for, one entry a step that sampled anyone."""

    asked: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def images_NCHW(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        self.asked.append(chosen.copy())
        return super().images_NCHW(chosen)


def make_data(num_patients: int) -> WatchedImages:
    names = tuple(f"{n:06d}" for n in range(num_patients))
    rng = np.random.default_rng(8)
    store = Store(
        folder=Path(),
        key="",
        classes=("a", "b"),
        mode="multiclass",
        images_NCHW=rng.integers(0, 256, (num_patients, 1, 16, 16), dtype=np.uint8),
        masks_NHW=None,
        labels=rng.integers(0, 2, num_patients),
        patients=names,
        splits=("",) * num_patients,
        columns={},
        reports=names,
        record_ids=names,
        num_quarantined=0,
    )
    return WatchedImages((store,), np.zeros(num_patients, np.int64), np.arange(num_patients))


def make_study(steps: int, **privacy: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "statistics", "seed": 11},
            "task": {"classes": ["a", "b"]},
            "data": {"image_size": 16},
            "training": {"local_steps": steps, "learning_rate": 1.0, "momentum": 0.0},
            "privacy": {"chunk": 100_000, **privacy},
        }
    )


class Silent(nn.Module):
    """A network whose output ignores its weights: every gradient is zero, what is left is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(40_000))

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2) + 0 * self.weights[0]


def train(
    study: StudyConfig, data: ImageSet, *, seeded: bool, public_num_patients: int | None = None
) -> npt.NDArray[np.generic]:
    """The flat update of a silent network."""
    model = Silent()
    result = train_with_privacy(
        model,
        read_state(model),
        data,
        make_task(study),
        Round(study, "one", 1, torch.device("cpu")),
        seeded=seeded,
        public_num_patients=public_num_patients,
    )
    return result.update["weights"]


def sample_sizes(study: StudyConfig, data: WatchedImages, *, seeded: bool) -> list[int]:
    train(study, data, seeded=seeded)
    steps = study.training.local_steps or 0
    sizes = [len(asked) for asked in data.asked]
    return [*sizes, *[0] * (steps - len(sizes))]


def rate_is(rate: float, sizes: list[int], num_patients: int) -> bool:
    trials = num_patients * len(sizes)
    return abs(sum(sizes) - trials * rate) < SIGMAS * math.sqrt(trials * rate * (1 - rate))


def spread_is_poissons(rate: float, sizes: list[int], num_patients: int) -> bool:
    mean = num_patients * rate
    statistic = sum((size - mean) ** 2 for size in sizes) / (mean * (1 - rate))
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], len(sizes))
    return bool(low < statistic < high)


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "secure"])
@pytest.mark.parametrize("num_patients", [60, 600])
def test_sampling_is_poisson_at_the_public_rate_whatever_the_population(
    num_patients: int, seeded: bool
) -> None:
    data = make_data(num_patients)
    # The expected batch is public too, and has no part in the rate.
    study = make_study(200, sample_rate=0.1, expected_batch_size=3.0)
    sizes = sample_sizes(study, data, seeded=seeded)
    assert rate_is(0.1, sizes, num_patients)
    for wrong in (0.1 * 2 / 3, 0.1 * 3 / 2):
        assert not rate_is(wrong, sizes, num_patients)
    assert spread_is_poissons(0.1, sizes, num_patients)
    # Batches of fixed size, shuffled, are what is often accounted as Poisson and is not.
    assert not spread_is_poissons(0.1, [num_patients // 10] * 200, num_patients)
    # Everyone is as likely as anyone, and never twice in a step.
    everyone = np.bincount(np.concatenate(data.asked), minlength=num_patients)
    assert np.abs(everyone - 20).max() < 6.5 * math.sqrt(200 * 0.1 * 0.9)
    assert all(len(set(asked.tolist())) == len(asked) for asked in data.asked)


def test_sampling_leaves_steps_empty_as_often_as_chance_does() -> None:
    sizes = sample_sizes(make_study(400, sample_rate=0.1), make_data(10), seeded=True)
    chance = 0.9**10
    empty = sizes.count(0)
    assert abs(empty - 400 * chance) < 5 * math.sqrt(400 * chance * (1 - chance))


def std_is(std: float, values: npt.NDArray[np.floating]) -> bool:
    """Whether mean squares agree with N(0, std^2), at 6 standard deviations."""
    ratio = float(np.mean(np.square(values, dtype=np.float64))) / std**2
    return abs(ratio - 1) < SIGMAS * math.sqrt(2 / values.size)


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "secure"])
@pytest.mark.parametrize(("public", "batch"), [(None, 12.5), (250, 225.0)])
def test_noise_of_a_round_is_what_the_ledger_states(
    public: int | None, batch: float, seeded: bool
) -> None:
    # Samples of about 9 in chunks of 2: the noise is added once a step, however many chunks.
    study = make_study(
        4,
        sample_rate=0.9,
        noise_multiplier=1.7,
        max_grad_norm=0.4,
        expected_batch_size=12.5,
        chunk=2,
    )
    data = make_data(10)
    values = train(study, data, seeded=seeded, public_num_patients=public)
    assert len(data.asked) > 8
    std = math.sqrt(4) * 1.7 * 0.4 / batch
    assert std_is(std, values)
    assert kstest(values / std, norm.cdf).pvalue > FALSE_ALARM
    # 2 and 1/2: the same noise in all four steps, or in one of them only.
    for factor in (2 / 3, 3 / 2, 0.9, 1.1, 2.0, 0.5):
        assert not std_is(factor * std, values)
    assert abs(np.mean(values[1:] * values[:-1])) / std**2 < SIGMAS / math.sqrt(values.size)


def test_noise_of_a_step_is_added_to_the_clipped_sum() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 200)).double()
    images = torch.randn(5, 1, 1, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    batch = PatientBatch((images,), torch.arange(5).reshape(5, 1), torch.ones(5, 1).double())
    kept = {name: value.clone() for name, value in model.state_dict().items()}

    def step(noise_multiplier: float) -> npt.NDArray[np.float64]:
        model.load_state_dict(kept)
        optimizer = NoisyOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=noise_multiplier,
            max_grad_norm=0.8,
            expected_batch_size=9.0,
            noise=SecureNoise(),
        )
        loss = make_task(make_study(1)).loss_per_image
        dp_step(model, optimizer, loss, [batch])
        moved = [(kept[n] - value).flatten() for n, value in model.state_dict().items()]
        return torch.cat(moved).numpy()

    clipped = step(1e-12)
    assert np.linalg.norm(clipped) > 0.01
    noise = step(1.3) - clipped
    std = 1.3 * 0.8 / 9.0
    assert std_is(std, noise)
    for wrong in (std * 2 / 3, std * 3 / 2):
        assert not std_is(wrong, noise)
    # Nothing of the clipped sum is lost or counted twice under the noise.
    share = float(noise @ clipped) / float(clipped @ clipped)
    assert abs(share) < SIGMAS * std / float(np.linalg.norm(clipped))
