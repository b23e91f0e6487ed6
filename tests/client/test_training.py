"""One site's round: against plain loops, bit for bit where nothing is random but the seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from medfed.client.batches import scaled, standardised
from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.client.privacy.noise import SeededNoise
from medfed.client.training import (
    Round,
    TrainingResult,
    expected_batch,
    train_with_privacy,
    train_without_privacy,
)
from medfed.common.models import build_model
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.seeding import numpy_rng, torch_rng
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import ComputeSection, StudyConfig
from medfed.common.tasks import make_task

CPU = torch.device("cpu")
SIZE = 16


@dataclass(frozen=True)
class WatchedImages(ImageSet):
    """Images that remember which positions were asked for, one entry a batch or chunk."""

    asked: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def images_NCHW(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        self.asked.append(chosen.copy())
        return super().images_NCHW(chosen)


def make_data(images_per_patient: Sequence[int], *, multilabel: bool = False) -> WatchedImages:
    """Patient p holds images_per_patient[p] random images, one after the other."""
    rng = np.random.default_rng(8)
    patients = tuple(f"{p:06d}" for p, n in enumerate(images_per_patient) for _ in range(n))
    num = len(patients)
    store = Store(
        folder=Path(),
        key="",
        classes=("a", "b"),
        mode="multilabel" if multilabel else "multiclass",
        images_NCHW=rng.integers(0, 256, (num, 1, SIZE, SIZE), dtype=np.uint8),
        masks_NHW=None,
        labels=rng.integers(0, 2, (num, 2), dtype=np.uint8)
        if multilabel
        else rng.integers(0, 2, num),
        patients=patients,
        splits=("",) * num,
        columns={},
        reports=("",) * num,
        record_ids=tuple(str(n) for n in range(num)),
        num_quarantined=0,
    )
    return WatchedImages((store,), np.zeros(num, dtype=np.int64), np.arange(num))


def make_study(
    *,
    multilabel: bool = False,
    seed: int = 5,
    privacy: dict[str, object],
    augmentation: dict[str, object] | None = None,
    **training: object,
) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "training", "seed": seed},
            "task": {"classes": ["a", "b"], "mode": "multilabel" if multilabel else "multiclass"},
            "data": {"image_size": SIZE},
            "training": {"learning_rate": 0.1, **training},
            "augmentation": augmentation or {},
            "privacy": privacy,
        }
    )


def private_study(*, seed: int = 5, local_steps: int = 4, **privacy: object) -> StudyConfig:
    return make_study(seed=seed, local_steps=local_steps, privacy={"chunk": 1000, **privacy})


def plain_study(*, multilabel: bool = False, **training: object) -> StudyConfig:
    values = {"batch_size": 4, **training}
    return make_study(multilabel=multilabel, privacy={"unit": "none"}, **values)


def start_of(study: StudyConfig) -> tuple[nn.Module, StateDict]:
    model = build_model(study, 2)
    lay_out_for_cpu(model)  # as a site does
    return model, read_state(model)


def train_privately(
    study: StudyConfig,
    data: ImageSet,
    *,
    site: str = "one",
    round_number: int = 1,
    seeded: bool = True,
    public_num_patients: int | None = None,
) -> TrainingResult:
    model, weights = start_of(study)
    return train_with_privacy(
        model,
        weights,
        data,
        make_task(study),
        Round(study, site, round_number, CPU),
        seeded=seeded,
        public_num_patients=public_num_patients,
    )


def train_plainly(
    study: StudyConfig, data: ImageSet, *, site: str = "one", round_number: int = 1
) -> TrainingResult:
    model, weights = start_of(study)
    this = Round(study, site, round_number, CPU)
    return train_without_privacy(model, weights, data, make_task(study), this)


def assert_same(one: StateDict, other: StateDict) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.tobytes() == other[name].tobytes(), name


def differ(one: StateDict, other: StateDict) -> bool:
    return any(not np.array_equal(array, other[name]) for name, array in one.items())


def inputs_of(study: StudyConfig, data: ImageSet) -> tuple[Tensor, Tensor]:
    everyone = np.arange(len(data))
    images = standardised(scaled(data.images_NCHW(everyone), CPU), study.data)
    return images, make_task(study).targets(data.examples(everyone))


# Without privacy


@pytest.mark.parametrize("multilabel", [False, True], ids=["multiclass", "multilabel"])
@pytest.mark.parametrize(
    "training",
    [
        {"local_epochs": 2, "momentum": 0.9, "weight_decay": 0.01},
        {"local_epochs": 1, "optimizer": "adam", "weight_decay": 0.01},
        {"local_steps": 7, "momentum": 0.0},
    ],
    ids=["sgd", "adam", "steps"],
)
def test_training_without_privacy_is_a_plain_loop_bit_for_bit(
    training: dict[str, object], multilabel: bool
) -> None:
    study = plain_study(multilabel=multilabel, **training)
    data = make_data((2, 1, 3, 1, 2, 2), multilabel=multilabel)
    result = train_plainly(study, data, site="two", round_number=3)

    model, weights = start_of(study)
    images, targets = inputs_of(study, data)
    if training.get("optimizer") == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            model.parameters(), lr=0.1, weight_decay=0.01, fused=True
        )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=0.1,
            momentum=float(str(training["momentum"])),
            weight_decay=float(str(training.get("weight_decay", 0.0))),
            fused=True,
        )

    def criterion(outputs: Tensor, wanted: Tensor) -> Tensor:
        if not multilabel:
            return nn.functional.cross_entropy(outputs, wanted)
        # The mean over the classes first: another order of additions rounds differently.
        losses_BL = nn.BCEWithLogitsLoss(reduction="none")(outputs, wanted)
        return losses_BL.mean(dim=1).mean()

    rng = numpy_rng(5, "batches", 3, "two")
    orders = [rng.permutation(11) for _ in range(3)]
    batches = [order[start : start + 4] for order in orders for start in (0, 4, 8)]
    num_steps = int(str(training.get("local_steps") or 3 * int(str(training["local_epochs"]))))
    total, count = 0.0, 0
    for chosen in batches[:num_steps]:
        optimizer.zero_grad()
        loss = criterion(model(images[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
        total, count = total + loss.item() * len(chosen), count + len(chosen)

    trained = read_state(model)
    assert_same(result.update, {name: trained[name] - weights[name] for name in weights})
    assert result.loss == pytest.approx(total / count, rel=1e-5)


def test_training_in_bfloat16_is_a_plain_loop_under_autocast_bit_for_bit() -> None:
    study = plain_study(local_steps=3, momentum=0.0)
    half = study.model_copy(update={"compute": ComputeSection(precision="bfloat16")})
    data = make_data((1,) * 12)
    result = train_plainly(half, data)

    model, weights = start_of(study)
    images, targets = inputs_of(study, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    order = numpy_rng(5, "batches", 1, "one").permutation(12)
    for start in (0, 4, 8):
        chosen = order[start : start + 4]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images[chosen])
        assert outputs.dtype is torch.bfloat16
        nn.functional.cross_entropy(outputs.float(), targets[chosen]).backward()
        optimizer.step()
    trained = read_state(model)
    assert_same(result.update, {name: trained[name] - weights[name] for name in weights})

    exact = train_plainly(study, data).update
    assert differ(result.update, exact)
    one, other = (np.concatenate([a.ravel() for a in s.values()]) for s in (result.update, exact))
    assert one @ other > 0.9 * np.linalg.norm(one) * np.linalg.norm(other)


def test_training_without_privacy_counts_passes_or_steps() -> None:
    data = make_data((1,) * 10)
    train_plainly(plain_study(local_epochs=2), data)
    assert [len(chosen) for chosen in data.asked] == [4, 4, 2, 4, 4, 2]
    for first in (0, 3):
        assert sorted(np.concatenate(data.asked[first : first + 3])) == list(range(10))
    assert not np.array_equal(data.asked[0], data.asked[3])
    data = make_data((1,) * 10)
    train_plainly(plain_study(local_steps=5), data)
    assert [len(chosen) for chosen in data.asked] == [4, 4, 2, 4, 4]
    data = make_data((1,) * 10)
    train_plainly(plain_study(local_steps=2, batch_size=64), data)
    assert [len(chosen) for chosen in data.asked] == [10, 10]


# Under privacy


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_training_with_privacy_is_a_plain_loop(clipping: str) -> None:
    study = private_study(
        clipping=clipping,
        sample_rate=0.5,
        images_per_patient=2,
        max_grad_norm=0.6,
        noise_multiplier=0.3,
        expected_batch_size=3.0,
        chunk=2,
    )
    data = make_data((2, 1, 4, 1, 3, 2))
    result = train_privately(study, data, site="two", round_number=3)

    model, weights = start_of(study)
    images, targets = inputs_of(study, data)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    rng = numpy_rng(5, "dp sampling", 3, "two")
    noise = SeededNoise(torch_rng(5, "dp noise", 3, "two"))
    sizes = []
    for _ in range(4):
        sampled = [p for p, u in enumerate(rng.random(6)) if u < 0.5]
        sums = [torch.zeros_like(p) for p in parameters]
        for patient in sampled:
            chosen = data.groups[patient]
            if len(chosen) > 2:
                chosen = np.sort(chosen[np.argsort(rng.random(len(chosen)))[:2]])
            loss = nn.functional.cross_entropy(model(images[chosen]), targets[chosen])
            gradients = torch.autograd.grad(loss, parameters)
            length = torch.cat([g.flatten() for g in gradients]).norm()
            flat, automatic = min(1.0, 0.6 / float(length)), 0.6 / (float(length) + 0.01)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient * (flat if clipping == "flat" else automatic)
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = (total + 0.3 * 0.6 * noise.normal_like(total)) / 3.0
        optimizer.step()
        sizes.append(len(sampled))
    assert len(set(sizes)) > 1
    trained = read_state(model)
    for name, array in result.update.items():
        np.testing.assert_allclose(array, trained[name] - weights[name], rtol=0, atol=2e-6)
    assert max(float(np.abs(array).max()) for array in result.update.values()) > 1e-2


def test_training_with_privacy_states_no_loss() -> None:
    assert train_privately(private_study(), make_data((1, 2))).loss is None


def test_training_with_privacy_is_repeatable_when_seeded() -> None:
    data = make_data((2, 1, 4, 1, 3, 2))
    study = private_study(sample_rate=0.5)
    update = train_privately(study, data).update
    assert_same(update, train_privately(study, data).update)
    # The same stream for two sites, rounds or studies would let their noise be subtracted.
    others = [
        train_privately(study, data, site="two"),
        train_privately(study, data, round_number=2),
        train_privately(private_study(sample_rate=0.5, seed=6), data),
    ]
    assert all(differ(update, other.update) for other in others)


def test_training_with_privacy_never_repeats_when_secure() -> None:
    study = private_study(sample_rate=1e-12)  # nobody is sampled: what remains is noise
    runs = [train_privately(study, make_data((1, 1)), seeded=False).update for _ in range(2)]
    flat = [np.concatenate([array.ravel() for array in run.values()]) for run in runs]
    # Rounding of new minus old weights gives chance coincidences, not shared noise.
    assert np.mean(flat[0] == flat[1]) < 1e-3
    assert abs(np.corrcoef(flat)[0, 1]) < 6 / np.sqrt(len(flat[0]))


def test_training_with_privacy_takes_everyone_at_rate_one_and_at_most_k_images() -> None:
    data = make_data((2, 1, 9, 5))
    train_privately(private_study(sample_rate=1.0, images_per_patient=3, local_steps=50), data)
    assert len(data.asked) == 50
    choices: set[tuple[int, ...]] = set()
    for asked in data.asked:
        rows_PK = asked.reshape(4, 3)
        images = [set(row) for row in rows_PK.tolist()]
        assert images[:2] == [{0, 1}, {2}]
        for row, group in ((2, range(3, 12)), (3, range(12, 17))):
            assert len(images[row]) == 3
            assert images[row] <= set(group)
        choices.add(tuple(rows_PK[2]))
    # 84 ways to choose 3 of 9: chosen anew each step.
    assert len(choices) > 25


@pytest.mark.slow
def test_training_with_privacy_chooses_a_patients_images_uniformly() -> None:
    data = make_data((4,))
    train_privately(private_study(sample_rate=1.0, images_per_patient=1, local_steps=400), data)
    counts = np.bincount(np.concatenate(data.asked), minlength=4)
    assert counts.sum() == 400
    # Binomial(400, 1/4): 4.5 standard deviations.
    assert np.abs(counts - 100).max() < 4.5 * np.sqrt(400 * 3 / 16)


def test_training_with_privacy_of_records_takes_each_image_alone() -> None:
    data = make_data((3, 1, 2))
    study = private_study(unit="record", sample_rate=1.0, images_per_patient=1, local_steps=2)
    train_privately(study, data)
    assert [asked.tolist() for asked in data.asked] == [list(range(6))] * 2
    # The same images as one-image patients: the very same update.
    assert_same(
        train_privately(study, data).update,
        train_privately(
            private_study(sample_rate=1.0, images_per_patient=1, local_steps=2),
            make_data((1,) * 6),
        ).update,
    )


def test_training_with_privacy_bounds_a_patient_with_many_images_as_one() -> None:
    def moved(unit: str) -> float:
        # One patient, six images of one class: nobody else, and noise too small to count.
        data = make_data((6,))
        data.labels[:] = 1
        study = make_study(
            local_steps=1,
            momentum=0.0,
            privacy={
                "unit": unit,
                "sample_rate": 1.0,
                "images_per_patient": 6,
                "max_grad_norm": 0.01,
                "expected_batch_size": 1.0,
            },
        )
        # Below what a study may ask for.
        noiseless = study.privacy.model_copy(update={"noise_multiplier": 1e-6})
        study = study.model_copy(update={"privacy": noiseless})
        update = train_privately(study, data).update
        return float(np.linalg.norm(np.concatenate([a.ravel() for a in update.values()])))

    assert moved("patient") == pytest.approx(0.1 * 0.01, rel=0.01)
    # Six records may move it further: the unit makes a difference that this test can see.
    assert moved("record") > 3 * 0.1 * 0.01


def test_training_with_privacy_decodes_in_chunks_of_the_study() -> None:
    data = make_data((1,) * 7)
    train_privately(private_study(sample_rate=1.0, chunk=3, local_steps=1), data)
    assert [len(asked) for asked in data.asked] == [3, 3, 1]


def test_expected_batch_is_public() -> None:
    study = private_study(sample_rate=0.25, expected_batch_size=9.5)
    assert expected_batch(study, None) == 9.5
    assert expected_batch(study, 60) == 15.0


def test_training_with_privacy_divides_by_the_public_batch_not_the_sample() -> None:
    data = make_data((1,) * 6)
    study = private_study(sample_rate=1.0, expected_batch_size=6.0, local_steps=1)
    update = train_privately(study, data).update
    half = train_privately(
        private_study(sample_rate=1.0, expected_batch_size=12.0, local_steps=1), data
    ).update
    stated = train_privately(study, data, public_num_patients=12).update
    for name, array in update.items():
        np.testing.assert_allclose(half[name], array / 2, rtol=0, atol=1e-6)
        assert np.array_equal(stated[name], half[name])


def test_training_does_not_touch_the_weights_it_starts_from() -> None:
    study = private_study()
    model, weights = start_of(study)
    kept = {name: array.copy() for name, array in weights.items()}
    this = Round(study, "one", 1, CPU)
    data = make_data((1, 2, 3))
    task = make_task(study)
    first = train_with_privacy(
        model, weights, data, task, this, seeded=True, public_num_patients=None
    )
    assert_same(weights, kept)
    # A warm model, left elsewhere by the round before, changes nothing.
    again = train_with_privacy(
        model, weights, data, task, replace(this), seeded=True, public_num_patients=None
    )
    assert_same(first.update, again.update)


# Augmentation


FLIP = {"flip": "horizontal", "probability": 1.0}


def augmented(multiplicity: int, **changes: object) -> StudyConfig:
    """Everyone in every step, hardly any noise; a change of images that leaves no chance."""
    study = make_study(
        local_steps=2,
        privacy={"sample_rate": 1.0, "noise_multiplier": 0.1, "chunk": 2},
        augmentation={**FLIP, **changes, "multiplicity": multiplicity},
    )
    noiseless = study.privacy.model_copy(update={"noise_multiplier": 1e-6})
    return study.model_copy(update={"privacy": noiseless})


def test_multiplicity_averages_versions_within_a_patients_gradient() -> None:
    counts = (2, 1, 3)
    one, data = train_privately(augmented(1), make_data(counts)), make_data(counts)
    three = train_privately(augmented(3), data)
    # Each image stands three times in a row, in the same patient's part of the batch.
    assert data.asked[0].reshape(2, -1).tolist() == [[0, 0, 0, 1, 1, 1], [2] * 6]
    # All versions are the same here, so their mean is any of them, before and after the clip.
    for name, array in one.update.items():
        np.testing.assert_allclose(three.update[name], array, rtol=0, atol=2e-6)
    other = train_privately(augmented(1, flip="vertical"), make_data(counts))
    assert differ(one.update, other.update)


def test_versions_of_an_image_differ_from_step_to_step_and_repeat_with_the_seed() -> None:
    study, data = augmented(2, noise=0.2), make_data((2, 2))
    first = train_privately(study, data)
    assert_same(first.update, train_privately(study, data).update)
    assert differ(first.update, train_privately(study, data, round_number=2).update)
    assert differ(first.update, train_privately(augmented(2), data).update)


def test_without_privacy_versions_enlarge_the_batch() -> None:
    study = make_study(
        local_steps=1,
        batch_size=4,
        privacy={"unit": "none"},
        augmentation={**FLIP, "multiplicity": 2},
    )
    data = make_data((1,) * 8)
    train_plainly(study, data)
    [asked] = data.asked
    assert len(asked) == 8
    assert (asked[::2] == asked[1::2]).all()
