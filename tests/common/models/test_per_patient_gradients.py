"""Per-patient gradients by vmap against a plain autograd loop, for every classification network.

In float64. In float32 the gradient of a deep network is no smooth function of rounding: where one
of millions of ReLU inputs rounds to the other side of zero it jumps, by up to 2 % of its norm here,
between two float32 computations as between float32 and float64 of the very same loop.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.client.privacy.dp_sgd import PatientBatch, patient_gradients
from medfed.common.models.classifiers import build_classifier
from medfed.common.models.freezing import freeze, set_training_mode, trained_names

pytestmark = pytest.mark.usefixtures("small_vgg")


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _batch(dims: int, size: int, dtype: torch.dtype = torch.float64) -> PatientBatch:
    """Two patients: one with two images, one with one and padding."""
    images = torch.randn(2, 2, 3, *[size] * dims, generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=dtype)
    return PatientBatch((images.to(dtype),), torch.tensor([[0, 2], [1, 1]]), mask)


def _loop(model: nn.Module, batch: PatientBatch) -> list[dict[str, Tensor]]:
    """Each patient alone through ordinary autograd, without the padding."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    (images,) = batch.inputs
    gradients = []
    for patient in range(len(batch)):
        real = batch.mask_PK[patient] == 1
        loss = _losses(model(images[patient][real]), batch.targets_PK[patient][real]).mean()
        values = torch.autograd.grad(loss, list(trainable.values()))
        gradients.append(dict(zip(trainable, values, strict=True)))
    return gradients


def _assert_equal(model: nn.Module, batch: PatientBatch, tolerance: float = 1e-10) -> None:
    by_vmap = patient_gradients(model, _losses, batch)
    for patient, expected in enumerate(_loop(model, batch)):
        assert set(by_vmap) == set(expected)
        difference = sum((by_vmap[n][patient] - g).square().sum() for n, g in expected.items())
        norm = sum(g.square().sum() for g in expected.values())
        assert norm > 0
        assert (difference / norm).sqrt() <= tolerance


@pytest.mark.parametrize(
    ("name", "dims", "size"),
    [
        ("cnn", 2, 16),
        ("cnn", 3, 12),
        ("vgg16", 2, 32),
        ("resnet18", 2, 32),
        ("resnet18", 3, 16),
        ("resnet50", 2, 32),
        ("resnet50", 3, 16),
        ("inception_v3", 2, 75),
        ("densenet121", 2, 32),
        ("densenet121", 3, 29),
    ],
)
def test_patient_gradients_equal_a_loop(name: str, dims: int, size: int) -> None:
    torch.manual_seed(2)
    model = build_classifier(
        name, spatial_dims=dims, in_channels=3, num_outputs=3, image_size=size, norm="group"
    )
    model.double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _assert_equal(model, _batch(dims, size))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("name", "size"), [("cnn", 16), ("vgg16", 32), ("resnet18", 16)])
def test_patient_gradients_equal_a_loop_in_single_precision(name: str, size: int) -> None:
    torch.manual_seed(2)
    model = build_classifier(name, in_channels=3, num_outputs=3, image_size=size, norm="group")
    _assert_equal(model, _batch(2, size, torch.float32), tolerance=1e-4)


def test_patient_gradients_of_what_is_not_frozen_equal_a_loop() -> None:
    torch.manual_seed(2)
    model = build_classifier("resnet18", in_channels=3, num_outputs=3, image_size=33, norm="batch")
    # A frozen BatchNorm normalises by fixed statistics: no patient sees another through it.
    freeze(model.double(), "backbone")
    set_training_mode(model)
    batch = _batch(2, 33)
    assert set(patient_gradients(model, _losses, batch)) == {"fc.weight", "fc.bias"}
    assert trained_names(model) == ("fc.weight", "fc.bias")
    _assert_equal(model, batch)
