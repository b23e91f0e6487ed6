"""Low-rank adaptation: starts as the network was, trains what it should, travels alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.models import (
    build_model,
    check_model,
    frozen_state_digest,
    trained_names,
    trained_state,
)
from medfed.common.models.low_rank import add_low_rank
from medfed.common.state_dicts import digest, read_state, write_state
from medfed.common.study import StudyConfig

LESION = {"type": "segmentation", "classes": ["lesion"]}


def study_of(
    model: dict[str, Any], task: dict[str, Any] | None = None, *, seed: int = 3, **data: Any
) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "lora", "seed": seed},
            "task": task or {"classes": ["a", "b", "c"]},
            "model": model,
            "data": {"image_size": 32, **data},
            "training": {"local_steps": 1},
        }
    )


MODELS = {
    "cnn": ({"name": "cnn"}, None, {}),
    "cnn volumes": ({"name": "cnn"}, None, {"dimensions": 3}),
    "resnet18": ({"name": "resnet18"}, None, {}),
    "unet": ({"name": "unet", "widths": [4, 8, 16]}, LESION, {}),
    "unet volumes": ({"name": "unet", "widths": [4, 8]}, LESION, {"dimensions": 3}),
    "unet standardised": (
        {"name": "unet", "widths": [4, 8], "weight_standardisation": True},
        LESION,
        {},
    ),
}


def low_rank_names(model: nn.Module) -> set[str]:
    return {n for n, _ in model.named_parameters() if n.rpartition(".")[2].startswith("low_rank_")}


@pytest.mark.parametrize("key", MODELS)
def test_network_starts_as_it_was_and_then_moves(key: str) -> None:
    model, task, data = MODELS[key]
    plain = build_model(study_of(model, task, **data), 3)
    study = study_of({**model, "low_rank": 2}, task, **data)
    check_model(study)
    ours = build_model(study, 3)
    sides = (study.data.image_size,) * study.data.dimensions
    images = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(images), plain(images))
    names = low_rank_names(ours)
    head = {n for n, _ in ours.named_parameters() if n.startswith(tuple(ours.head))}  # type: ignore[arg-type]
    assert set(trained_names(ours)) == names | head
    ours(images).square().mean().backward()
    gradients = dict(ours.named_parameters())
    for name in names:
        gradient = gradients[name].grad
        assert gradient is not None, name
        # B is zero, so A has no gradient yet.
        assert bool(gradient.any()) == name.endswith("_b"), name
    with torch.no_grad():
        for name in names:
            gradients[name].add_(0.1)
    assert not torch.allclose(ours(images), plain(images))


def layer_cases() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    flat, deep = torch.randn(2, 4, 9, 9), torch.randn(2, 4, 5, 5, 5)
    return {
        "linear": (nn.Linear(6, 5), torch.randn(2, 3, 6)),
        "conv": (nn.Conv2d(4, 5, 3, stride=2, padding=1, padding_mode="replicate"), flat),
        "conv 3-D": (nn.Conv3d(4, 5, (1, 3, 3), dilation=2), deep),
        "transposed": (nn.ConvTranspose2d(4, 5, 3, stride=2, output_padding=1), flat),
        "transposed 3-D": (nn.ConvTranspose3d(4, 5, 2, stride=2, bias=False), deep),
    }


@pytest.mark.parametrize("key", layer_cases())
def test_layer_acts_as_if_its_weight_were_the_sum(key: str) -> None:
    layer, inputs = layer_cases()[key]
    layer.requires_grad_(False)
    add_low_rank(layer, 2)
    a, b = layer.low_rank_a, layer.low_rank_b
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    with torch.no_grad():
        b.normal_()
    ours = layer(inputs)
    product = torch.einsum("ir...,or->io..." if "transposed" in key else "ri...,or->oi...",
                           a, b.reshape(len(b), -1))  # fmt: skip
    with torch.no_grad():
        layer.weight.add_(product)  # type: ignore[operator]
        b.zero_()
    torch.testing.assert_close(ours, layer(inputs), rtol=1e-4, atol=1e-5)


def test_rank_is_at_most_that_of_the_layer() -> None:
    layer = nn.Conv2d(1, 32, 3)
    layer.requires_grad_(False)
    add_low_rank(layer, 100)
    assert layer.low_rank_a.shape == (9, 1, 3, 3)
    assert layer.low_rank_b.shape == (32, 9, 1, 1)


def test_only_what_trains_travels_and_the_hash_covers_the_rest() -> None:
    full = build_model(study_of({"name": "resnet18"}), 3)
    study = study_of({"name": "resnet18", "low_rank": 2})
    model = build_model(study, 3)
    sent = trained_state(model)
    assert set(sent) == low_rank_names(model) | {"fc.weight", "fc.bias"}
    size, whole = (sum(a.nbytes for a in s.values()) for s in (sent, read_state(full)))
    assert size < 0.02 * whole
    before = frozen_state_digest(model)
    with torch.no_grad():
        model.get_parameter("layer1.0.conv1.low_rank_b").add_(1)
    assert frozen_state_digest(model) == before
    with torch.no_grad():
        model.get_parameter("layer1.0.conv1.weight").add_(1)
    assert frozen_state_digest(model) != before
    # What a site makes for itself is the coordinator's.
    assert digest(trained_state(build_model(study, 3))) == digest(sent)
    write_state(model, sent)


def test_weights_file_of_the_network_without_loads(tmp_path: Path) -> None:
    source = build_model(study_of({"name": "cnn"}, seed=9), 3)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    weights = {"name": "cnn", "low_rank": 2, "weights": str(tmp_path / "source.safetensors")}
    model = build_model(study_of(weights), 3)
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(model(images), source(images))


@pytest.mark.parametrize(
    ("freeze", "more"),
    [
        ("none", set()),
        ("backbone", set()),
        ("weights", {"features.0.bias", "features.3.bias", "classifier.1.bias"}),
        (["features.0.*"], {"features.3.weight", "features.3.bias", "classifier.1.weight",
                            "classifier.1.bias"}),
    ],
)  # fmt: skip
def test_freeze_says_which_layers_get_matrices(freeze: Any, more: set[str]) -> None:
    model = build_model(study_of({"name": "cnn", "low_rank": 2, "freeze": freeze}), 3)
    names = set(trained_names(model))
    layers = {name.rpartition(".")[0] for name in low_rank_names(model)}
    only_first = isinstance(freeze, list)
    assert layers == {"features.0", *(() if only_first else ("features.3", "classifier.1"))}
    assert names - low_rank_names(model) == {"classifier.3.weight", "classifier.3.bias", *more}


def test_refuses_where_no_layer_is_frozen() -> None:
    study = study_of({"name": "resnet18", "low_rank": 2, "freeze": ["*.bn1.*"]})
    with pytest.raises(StudyError, match=r"model\.low_rank: expected frozen linear layers"):
        check_model(study)
