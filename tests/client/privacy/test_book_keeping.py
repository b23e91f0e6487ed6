"""Book-keeping against gradients patient by patient, and the bounds that privacy rests on.

Shapes: P patients, K images a patient (padded), R rows of a patient.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medfed.client.privacy import gradient_parts, norm_nodes
from medfed.client.privacy.book_keeping import BookKeeping, keeps_books
from medfed.client.privacy.dp_sgd import (
    Clipping,
    PatientBatch,
    clipped_sums,
    patient_gradients,
    sum_function,
)
from medfed.client.privacy.gradient_parts import ConvolutionRows, LinearRows
from medfed.client.privacy.layer_records import Records
from medfed.client.privacy.patches import Geometry
from medfed.client.privacy.recorded_sums import RecordedSums
from medfed.client.recording import Body, Replay
from medfed.common.models import build_model
from medfed.common.models.cnn import Cnn, lay_out_for_cpu
from medfed.common.models.low_rank import add_low_rank
from medfed.common.models.standardisation import standardise_weights
from medfed.common.study import StudyConfig

MASK_PK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


class Apart(nn.Module):
    """Layers one after the other, which promises to keep images apart."""

    images_apart = True

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images)
        return images.flatten(1)


class Recurrent(nn.Module):
    """The same linear layer at every word, as an LSTM's gates."""

    images_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.first = nn.Linear(5, 6)
        self.again = nn.Linear(6, 6)

    def forward(self, words: Tensor) -> Tensor:
        state = torch.zeros(len(words), 6, dtype=self.again.weight.dtype)
        for word in self.first(self.embedding(words)).unbind(dim=1):
            state = torch.tanh(word + self.again(state))
        return state


class TwiceConvolved(nn.Module):
    """One convolution over two sizes of image."""

    images_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        once = torch.tanh(self.convolution(images))
        outputs: Tensor = self.convolution(once[:, :, ::2, ::2])
        return outputs.flatten(1)


class UnevenCalls(nn.Module):
    """One linear layer over few rows and over many."""

    images_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, images: Tensor) -> Tensor:
        many = torch.tanh(self.linear(images))
        outputs: Tensor = self.linear(many[:, 0, 0])
        return outputs


class PartlyUsed(Apart):
    """One layer has no part in the loss."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(2 * 6 * 6, 4))
        self.unused = nn.Linear(3, 3)


def low_rank() -> nn.Module:
    model = Apart(nn.Conv2d(2, 4, 3, stride=2), nn.ConvTranspose2d(4, 3, 2), nn.Flatten())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    add_low_rank(model, 2)
    for name, parameter in model.named_parameters():
        if name.endswith("low_rank_b"):  # of zeros, which would hide the gradient of a
            nn.init.normal_(parameter)
    return model


def biases_only() -> nn.Module:
    model = Apart(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


FLAT = (2, 6, 6)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Apart(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 4)), FLAT),
    "linear at positions": (lambda: Apart(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), FLAT),
    "convolutions": (
        lambda: Apart(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3)),
        FLAT,
    ),
    "uneven convolutions": (
        lambda: Apart(
            nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), bias=False),
            nn.Tanh(),
            nn.Conv2d(4, 3, 2, dilation=(2, 1), padding=1),
        ),
        FLAT,
    ),
    "convolutions in groups": (
        lambda: Apart(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4)),
        FLAT,
    ),
    "grey images": (
        lambda: Apart(nn.Conv2d(1, 9, 3, padding=1), nn.Tanh(), nn.ConvTranspose2d(9, 1, 3)),
        (1, 6, 6),
    ),
    "uneven grey images": (
        lambda: Apart(
            nn.Conv2d(1, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(1, 2), bias=False),
            nn.Tanh(),
            nn.ConvTranspose2d(8, 1, 2, stride=2, output_padding=1),
        ),
        (1, 6, 6),
    ),
    "channels last": (
        lambda: Apart(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 2, stride=2, groups=2)
        ).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        FLAT,
    ),
    "one dimension": (
        lambda: Apart(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 2, 3, stride=2)),
        (2, 9),
    ),
    "volumes": (
        lambda: Apart(nn.Conv3d(2, 3, 3, stride=2), nn.Tanh(), nn.ConvTranspose3d(3, 2, 2)),
        (2, 5, 6, 5),
    ),
    "transposed convolutions": (
        lambda: Apart(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 2, 3, groups=2, padding=1),
        ),
        FLAT,
    ),
    "group norm": (
        lambda: Apart(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 3)),
        FLAT,
    ),
    "sloped": (
        lambda: Apart(nn.Conv2d(2, 4, 3), nn.PReLU(), nn.Conv2d(4, 3, 3), nn.PReLU(3)),
        FLAT,
    ),
    "layer norm": (lambda: Apart(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), FLAT),
    "layer norm of all": (lambda: Apart(nn.Conv2d(2, 3, 3), nn.LayerNorm([3, 4, 4])), FLAT),
    "embedding and recurrence": (Recurrent, (6,)),
    "few rows and many": (UnevenCalls, FLAT),
    "convolution used twice": (TwiceConvolved, FLAT),
    "a layer without a part": (PartlyUsed, FLAT),
    "low rank": (low_rank, FLAT),
    "biases only": (biases_only, FLAT),
}


def batch_of(shape: tuple[int, ...], *, words: bool = False, seed: int = 0) -> PatientBatch:
    """Four patients of one to three images, with loud padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, *shape, generator=generator, dtype=torch.float64)
    images = images * (1 + 20 * (1 - MASK_PK.double()).view(4, 3, *[1] * len(shape)))
    inputs = torch.randint(7, (4, 3, *shape), generator=generator) if words else images
    return PatientBatch((inputs,), torch.zeros(4, 3), MASK_PK.double())


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - 0.3).square().sum(dim=1) + outputs.sin().sum(dim=1)


def flat(sums: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in sums.values()])


def by_vmap(
    model: nn.Module, batch: PatientBatch, bound: float, clipping: Clipping, loss: Any = loss
) -> dict[str, Tensor]:
    gradients = patient_gradients(model, loss, batch)
    sums = clipped_sums(list(gradients.values()), bound, clipping)
    return dict(zip(gradients, sums, strict=True))


@pytest.mark.parametrize("cost", [0, 32, 1 << 40], ids=["own gradients", "as is", "rows"])
@pytest.mark.parametrize("kind", LAYERS)
def test_sums_equal_those_of_per_patient_gradients(
    kind: str, cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_parts, "_COST_OF_KEEPING", cost)
    torch.manual_seed(1)
    make, shape = LAYERS[kind]
    model = make().double()
    assert keeps_books(model)
    batch = batch_of(shape, words=kind.startswith("embedding"))
    norms_P = flat_rows(patient_gradients(model, loss, batch)).norm(dim=1)
    assert norms_P.min() > 1e-3
    for clipping in ("flat", "automatic"):
        bound = float(norms_P.median())
        expected = by_vmap(model, batch, bound, clipping)
        found = BookKeeping(model, loss, bound, clipping)(batch)
        assert list(found) == list(expected)
        assert {n: part.shape for n, part in found.items()} == {
            n: part.shape for n, part in expected.items()
        }
        assert float((flat(found) - flat(expected)).norm()) <= 1e-10 * bound
    assert all(parameter.grad is None for parameter in model.parameters())


def test_convolutions_whose_channels_lie_last_are_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("cnn")
    lay_out_for_cpu(model)
    batch = PatientBatch((torch.randn(4, 3, 1, 32, 32),), torch.zeros(4, 3), MASK_PK)
    expected = by_vmap(model, batch, 0.1, "flat")

    def copied(*_: object) -> None:
        raise AssertionError("channels came first")

    monkeypatch.setattr(Records, "_channels_by_patient", copied)
    found = BookKeeping(model, loss, 0.1, "flat")(batch)
    assert float((flat(found) - flat(expected)).norm()) <= 1e-5 * 0.1


def flat_rows(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)


def build(name: str, **section: Any) -> nn.Module:
    study = StudyConfig.model_validate(
        {
            "study": {"name": "books", "seed": 3},
            "task": {"classes": ["a", "b", "c"]},
            "data": {"image_size": 32},
            "model": {"name": name, **section},
            "privacy": {"unit": "none"},
            "training": {"local_steps": 1},
        }
    )
    return build_model(study, 3).train()


def test_networks_of_a_study_keep_books_unless_they_see_their_weights_through_something() -> None:
    assert keeps_books(build("cnn"))
    assert keeps_books(build("cnn", low_rank=2))
    assert keeps_books(build("cnn", freeze="weights"))
    assert not keeps_books(build("cnn", weight_standardisation=True))
    assert keeps_books(build("cnn", weight_standardisation=True, low_rank=2))
    assert keeps_books(build("cnn", weight_standardisation=True, freeze="backbone"))


class Mixing(nn.Module):
    """Of a package of which we know nothing: the images of a batch see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(72, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.linear(images.flatten(1))
        return outputs - outputs.mean(dim=0)


class Scaled(Apart):
    """A parameter of its own, which no layer listens to."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(72, 4))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.scale


def tied() -> nn.Module:
    model = Apart(nn.Linear(6, 6), nn.Linear(6, 6))
    model.layers[1].weight = model.layers[0].weight
    return model


def standardised() -> nn.Module:
    model = Apart(nn.Conv2d(2, 4, 3))
    standardise_weights(model)
    return model


@pytest.mark.parametrize(
    "make",
    [
        Mixing,
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Flatten()),
        lambda: Apart(Mixing()),
        lambda: Apart(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
        lambda: Apart(nn.Conv2d(2, 4, 3, padding="same")),
        lambda: Apart(nn.Embedding(7, 3, padding_idx=0)),
        lambda: Apart(nn.LSTM(6, 6)),
        Scaled,
        tied,
        standardised,
    ],
    ids=[
        "mixing", "bare sequence", "mixing within", "batch norm", "padding by name",
        "padding word", "another layer", "own parameter", "tied", "standardised",
    ],
)  # fmt: skip
def test_other_networks_keep_no_books(make: Callable[[], nn.Module]) -> None:
    assert not keeps_books(make())


def test_what_mixes_images_mixes_those_of_one_patient_only() -> None:
    """Two patients of such a network have the sum of what each has alone."""
    model, batch = Mixing().double(), batch_of(FLAT)
    sum_of = sum_function(model, loss, 0.1, "flat")

    def alone(p: int) -> PatientBatch:
        return PatientBatch((batch.inputs[0][p : p + 1],), batch.targets_PK[p : p + 1], ONE)

    one = MASK_PK.double()
    parts = []
    for p in range(4):
        ONE = one[p : p + 1]
        parts.append(flat(sum_of(alone(p))))
    torch.testing.assert_close(flat(sum_of(batch)), torch.stack(parts).sum(dim=0))


def test_a_parameter_that_no_layer_listens_to_is_an_error() -> None:
    model = Scaled().double()
    with pytest.raises(RuntimeError, match="scale: a gradient that was not clipped"):
        BookKeeping(model, loss, 1.0, "flat")(batch_of(FLAT))


# Sensitivity


def contribution(model: nn.Module, batch: PatientBatch, bound: float, clipping: Clipping) -> float:
    """How much of the bound a patient alone reaches, its sum measured in double precision."""
    return float(flat(BookKeeping(model, loss, bound, clipping)(batch)).double().norm()) / bound


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e12, 1e25, math.inf, math.nan]),
    bound=st.sampled_from([1e-3, 1.0, 100.0]),
    cost=st.sampled_from([0, 32, 1 << 40]),
    clipping=st.sampled_from(["flat", "automatic"]),
)
def test_no_patient_moves_the_sum_by_more_than_the_bound(
    seed: int, counts: list[int], scale: float, bound: float, cost: int, clipping: Clipping
) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Apart(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip
    width = max(counts)
    images = torch.randn(len(counts), width, 1, 6, 6, generator=generator)
    images[0] *= scale
    mask_PK = (torch.arange(width) < torch.tensor(counts)[:, None]).float()
    whole = PatientBatch((images,), torch.zeros(len(counts), width), mask_PK)
    rest = PatientBatch((images[1:],), whole.targets_PK[1:], mask_PK[1:])
    one = PatientBatch((images[:1],), whole.targets_PK[:1], mask_PK[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_parts, "_COST_OF_KEEPING", cost)
        assert contribution(model, one, bound, clipping) <= 1 + 1e-5
        book = BookKeeping(model, loss, bound, clipping)
        with_it = flat(book(whole))
        without = flat(book(rest)) if len(counts) > 1 else torch.zeros_like(with_it)
    assert with_it.isfinite().all()
    # Rounding of a sum of so many patients comes on top, whoever they are.
    assert float((with_it - without).norm()) <= bound * (1 + 1e-5 * len(counts))


def cancelling(leftover: float, seed: int = 3) -> LinearRows:
    """One patient with long rows whose products cancel but for `leftover` of them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, 200, 300, generator=generator)
    gradients = torch.randn(1, 200, 4, generator=generator)
    inputs, gradients = torch.cat([inputs, inputs], 1), torch.cat([gradients, -gradients], 1)
    gradients[:, 200:] *= 1 + leftover
    # Apart from each other, so that they do not cancel term by term.
    order = torch.randperm(400, generator=generator)
    return LinearRows(inputs[:, order], gradients[:, order])


def exact_norm(rows: LinearRows) -> float:
    return float((rows.gradients_PRO.double().transpose(1, 2) @ rows.inputs_PRD.double()).norm())


@pytest.mark.parametrize("leftover", [0.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-1, 1.0])
def test_rows_that_cancel_do_not_enlarge_what_a_patient_adds(leftover: float) -> None:
    rows = cancelling(leftover)
    norm_P = rows.squares_P().sqrt()
    assert float(norm_P) >= exact_norm(rows) * (1 - 1e-9)
    added = rows.weighted_sum((1.0 / norm_P).float())
    assert float(added.double().norm()) <= 1 + 1e-5
    if leftover == 1.0:  # where little cancels the norm is what it was
        assert float(norm_P) == pytest.approx(exact_norm(rows), rel=5e-5)


def test_gram_matrices_in_single_precision_would_not_keep_the_bound() -> None:
    """What double precision is for: a norm far below the true one would multiply a patient."""
    shortest = min(
        float((a @ a.transpose(1, 2) * (g @ g.transpose(1, 2))).sum()) / exact_norm(rows) ** 2
        for rows in (cancelling(1e-4, seed) for seed in range(12))
        for a, g in [(rows.inputs_PRD, rows.gradients_PRO)]
    )
    assert shortest < 0.25  # of the square; negative ones among them


def test_without_the_guard_rounding_of_the_sum_would_break_the_bound() -> None:
    rows = cancelling(0.0)
    added = rows.weighted_sum(torch.ones(1)).double().norm()
    assert float(added) > 1000 * exact_norm(rows)  # a factor made for the latter would let it by
    assert float(rows.squares_P().sqrt()) > 100 * float(added)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_norms_of_a_convolution_in_single_precision_are_close(dims: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](5, 7, 3, stride=2, padding=1)
    images = torch.randn(6, 5, *[7] * dims, generator=generator)
    gradient = torch.randn(convolution(images).shape, generator=generator)
    each = (dims * (3,), dims * (2,), dims * (1,), dims * (1,))
    rows = ConvolutionRows(images, gradient, Geometry(*each), num_patients=2)
    for patient, square in enumerate(rows.squares_P()):
        part = slice(3 * patient, 3 * patient + 3)
        outputs = convolution.double()(images[part].double())
        (wanted,) = torch.autograd.grad(outputs, convolution.weight, gradient[part].double())
        assert float(square.sqrt()) == pytest.approx(float(wanted.norm()), rel=1e-5)
        convolution.float()


def rerun(body: Body) -> tuple[Replay, Tensor]:
    """A recorder for a CPU: a replay runs the work again on the arguments' held memory."""
    return body, torch.zeros(())


def test_sums_that_are_recorded_are_those_that_are_not() -> None:
    torch.manual_seed(0)
    model = Cnn(channels=1, image_size=16, num_outputs=3)
    assert keeps_books(model)

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    found = []
    for record in (None, rerun):
        sums = RecordedSums(model, losses, max_grad_norm=0.5, clipping="flat", record=record)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            images = torch.randn(5, 2, 1, 16, 16, generator=generator)
            targets = torch.randint(3, (5, 2), generator=generator)
            batch = PatientBatch((images,), targets, torch.ones(5, 2))
            total = flat(sums.of([batch])).clone()
            wanted = flat(by_vmap(model, batch, 0.5, "flat", losses))
            assert float((total - wanted).norm()) <= 2e-5 * 0.5
            found.append(total)
    assert all(torch.equal(found[i], found[i + 3]) for i in range(3))
    assert not torch.equal(found[0], found[1])


def test_groups_of_many_images_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes 65,535 groups at a time; the sums have the bits of those of all at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 3))
    batch = PatientBatch((torch.randn(5, 2, 4, 3, 3),), torch.randint(3, (5, 2)), torch.ones(5, 2))
    groups: list[int] = []
    backward = torch.ops.aten.native_group_norm_backward

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is backward.default:
                groups.append(args[8])
            return func(*args, **(kwargs or {}))

    def sums() -> list[Tensor]:
        with Counting():
            return list(BookKeeping(model, loss, 0.5, "flat")(batch).values())

    whole = sums()
    assert groups == [20]
    monkeypatch.setattr(norm_nodes, "_MOST_GROUPS", 7)
    for one, other in zip(sums(), whole, strict=True):
        assert torch.equal(one, other)
    assert groups[1:] == [6, 6, 6, 2]
