"""Weight standardisation: what convolutions see, what stays, and what must not break."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfed.common.models import build_model, check_model
from medfed.common.models.standardisation import standardise_weights, standardised
from medfed.common.state_dicts import digest, read_state
from medfed.common.study import StudyConfig

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def study_of(model: dict[str, Any], task: dict[str, Any] | None = None, **data: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "ws", "seed": 3},
            "task": task or {"classes": ["a", "b", "c"]},
            "model": model,
            "data": {"image_size": 32, **data},
            "training": {"local_steps": 1},
        }
    )


LESION = {"type": "segmentation", "classes": ["lesion"]}
MODELS = {
    "cnn": (study_of({"name": "cnn"}), 3),
    "cnn volumes": (study_of({"name": "cnn"}, dimensions=3), 3),
    "resnet18": (study_of({"name": "resnet18"}), 3),
    "densenet121": (study_of({"name": "densenet121"}), 3),
    "inception_v3": (study_of({"name": "inception_v3"}, image_size=75), 3),
    "unet": (study_of({"name": "unet", "widths": [4, 8, 16]}, LESION), 1),
    "unet volumes": (study_of({"name": "unet", "widths": [4, 8]}, LESION, dimensions=3), 1),
    "attention_unet": (study_of({"name": "attention_unet", "widths": [4, 8]}, LESION), 1),
}


def pair(key: str) -> tuple[nn.Module, nn.Module]:
    """The network without and with standardisation."""
    study, outputs = MODELS[key]
    section = study.model.model_copy(update={"weight_standardisation": True})
    other = study.model_copy(update={"model": section})
    check_model(other)
    return build_model(study, outputs), build_model(other, outputs)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 2, 2)])
def test_each_output_channel_gets_mean_0_and_the_variance_of_its_fan_in(
    transposed: bool, kernel: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    channels = (6, 4) if transposed else (4, 6)
    weight = 5 + 3 * torch.randn(*channels, *kernel, dtype=torch.float64)
    seen = standardised(weight, transposed=transposed)
    rows = (seen.transpose(0, 1) if transposed else seen).reshape(4, -1)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(4, dtype=torch.float64))
    gain = 2 / (1 - 1 / math.pi)
    expected = torch.full((4,), gain / (6 * math.prod(kernel)), dtype=torch.float64)
    torch.testing.assert_close(rows.var(dim=1, correction=0), expected, rtol=1e-6, atol=0)
    # Shift and scale of a channel's weights change nothing: what noise does to them is undone.
    torch.testing.assert_close(standardised(7 * weight - 2, transposed=transposed), seen)


def test_constant_weights_become_zeros_with_a_finite_gradient() -> None:
    weight = torch.full((2, 3, 3, 3), 0.7, requires_grad=True)
    seen = standardised(weight)
    assert float(seen.detach().abs().max()) < 1e-2
    (seen * torch.randn(seen.shape)).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


def test_gain_keeps_the_size_of_features_through_relu() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.ReLU()) for _ in "1234"]
    model = nn.Sequential(*layers)
    standardise_weights(model)
    features = torch.randn(4, 64, 24, 24).relu() * 1.713
    features = model(features)
    assert 0.7 < float(features.detach().var()) < 1.4


@pytest.mark.parametrize("key", MODELS)
def test_names_weights_and_first_values_stay(key: str) -> None:
    plain, ours = pair(key)
    assert list(plain.state_dict()) == list(ours.state_dict())
    assert digest(read_state(plain)) == digest(read_state(ours))
    assert plain.training == ours.training


@pytest.mark.parametrize("key", MODELS)
def test_outputs_ignore_shift_and_scale_of_convolutions_and_not_of_the_head(key: str) -> None:
    plain, ours = pair(key)
    study, _ = MODELS[key]
    sides = (study.data.image_size,) * study.data.dimensions
    images = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(1))

    def change_of(model: nn.Module) -> float:
        head = tuple(model.head)  # type: ignore[arg-type]
        with torch.no_grad():
            before: Tensor = model(images)
            for name, module in model.named_modules():
                if isinstance(module, CONVOLUTIONS) and not name.startswith(head):
                    module.weight.mul_(3).add_(0.2)
            return float((model(images) - before).norm() / before.norm())

    assert change_of(ours) < 1e-2 < 1e-1 < change_of(plain)


def test_head_and_convolutions_of_one_input_stay_as_they_are() -> None:
    _, unet = pair("unet")
    assert type(unet.output) is nn.Conv2d
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(4, 4, 3, groups=2))
    standardise_weights(model)
    assert type(model[0]) is nn.Conv2d
    assert type(model[1]) is not nn.Conv2d
    assert bool(model[0](torch.randn(1, 1, 5, 5)).any())


def test_random_state_is_not_touched() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    standardise_weights(model)
    assert torch.equal(torch.rand(3), expected)


def test_settings_of_a_convolution_are_kept() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"stride": 2, "padding": 2, "dilation": 2, "padding_mode": "reflect"}
    plain = nn.Conv2d(4, 6, 3, groups=2, bias=True, **settings)
    up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1, bias=False)
    model = nn.Sequential(plain, up)
    standardise_weights(model)
    images = torch.randn(2, 4, 12, 12)
    expected = plain._conv_forward(images, standardised(plain.weight), plain.bias)
    assert torch.equal(model[0](images), expected)
    assert model[0].weight is plain.weight
    expected = torch.nn.functional.conv_transpose2d(
        images, standardised(up.weight, transposed=True), None, 2, 1, 1
    )
    assert torch.equal(model[1](images), expected)
