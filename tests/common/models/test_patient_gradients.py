"""Segmenters, the report generator and fusion under DP: patients' gradients equal a plain loop's.

Shapes: P patients, K images a patient (padded).
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from medfed.client.privacy.dp_sgd import LossPerImage, PatientBatch, patient_gradients
from medfed.common.losses import exclusive_pixel_losses, word_losses
from medfed.common.models.classifiers import build_classifier
from medfed.common.models.fusion import Fusion
from medfed.common.models.report_lstm import ReportModel
from medfed.common.models.segmenters import build_segmenter
from medfed.common.text import BEGIN, PAD

# Real images of each patient; the others are padding.
COUNTS = (1, 3, 2)
MASK_PK = (torch.arange(max(COUNTS)) < torch.tensor(COUNTS)[:, None]).float()
SHAPE = tuple(MASK_PK.shape)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As in a site's process: what has no deterministic form raises."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def _loop(model: nn.Module, loss: LossPerImage, batch: PatientBatch) -> list[dict[str, Tensor]]:
    """Each patient's gradient by itself: the mean loss over the real images, backward."""
    gradients = []
    for patient, count in enumerate(COUNTS):
        model.zero_grad()
        outputs = model(*(part[patient, :count] for part in batch.inputs))
        loss(outputs, batch.targets_PK[patient, :count]).mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})  # type: ignore[union-attr]
    return gradients


def _assert_equal_a_loop(model: nn.Module, loss: LossPerImage, batch: PatientBatch) -> None:
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = patient_gradients(model, loss, batch)
    for patient, expected in enumerate(_loop(model, loss, batch)):
        assert found.keys() == expected.keys()
        difference = sum(
            (found[name][patient] - expected[name]).square().sum() for name in expected
        )
        size = sum(gradient.square().sum() for gradient in expected.values())
        assert size > 0
        assert (difference / size) ** 0.5 <= 1e-4
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def _noise(*shape: int) -> Tensor:
    return torch.randn(*SHAPE, *shape, generator=torch.Generator().manual_seed(10))


def _integers(low: int, high: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randint(low, high, (*SHAPE, *shape), generator=generator)


def _pixel_losses(logits: Tensor, masks: Tensor) -> Tensor:
    structures = torch.arange(logits.shape[1]).view(1, -1, *[1] * (masks.dim() - 1))
    return exclusive_pixel_losses(logits, masks.unsqueeze(1) == structures)


@pytest.mark.parametrize("size", [(8, 8), (13, 9), (5, 8, 6)])
@pytest.mark.parametrize("name", ["unet", "attention_unet"])
def test_segmenters_gradients_equal_a_loop(name: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(12)
    model = build_segmenter(
        name,
        spatial_dims=len(size),
        in_channels=2,
        num_outputs=3,
        channels=(4, 8, 12),
        norm="group",
    )
    batch = PatientBatch((_noise(2, *size),), _integers(0, 3, *size), MASK_PK)
    _assert_equal_a_loop(model, _pixel_losses, batch)


def _encoder(dims: int, channels: int) -> nn.Module:
    return build_classifier(
        "cnn",
        spatial_dims=dims,
        in_channels=channels,
        num_outputs=1,
        image_size=12,
        norm="group",
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_report_models_gradients_equal_a_loop(dims: int) -> None:
    torch.manual_seed(13)
    model = ReportModel(
        _encoder(dims, 1), num_words=11, embedding_size=5, hidden_size=6, attention_size=7
    )
    tokens = _integers(4, 11, 9)
    tokens[..., 0] = BEGIN
    # Reports of different lengths, one of them empty.
    for length, image in enumerate([(1, 0), (0, 0), (1, 1), (2, 0)]):
        tokens[(*image, slice(2 * length + 1, None))] = PAD
    batch = PatientBatch((_noise(1, *[12] * dims), tokens[..., :-1]), tokens[..., 1:], MASK_PK)
    _assert_equal_a_loop(model, lambda logits, targets: word_losses(logits, targets, PAD), batch)


@pytest.mark.parametrize("late", [True, False])
def test_fusions_gradients_equal_a_loop(late: bool) -> None:
    torch.manual_seed(14)
    encoders = [_encoder(2, 2) for _ in range(2)] if late else [_encoder(2, 4)]
    model = Fusion(encoders, num_tabular=3, num_outputs=2, hidden_size=5)
    # Both, one, the other and none of the views.
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [0, 1], [1, 0]] + [[1, 1]] * 2)
    inputs = (_noise(4, 12, 12), present.view(*SHAPE, 2).float(), _noise(3))
    batch = PatientBatch(inputs, _integers(0, 2), MASK_PK)
    _assert_equal_a_loop(model, nn.CrossEntropyLoss(reduction="none"), batch)
