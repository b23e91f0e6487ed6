"""Networks: right shapes, weights by seed only, nothing that mixes patients."""

import copy
from pathlib import Path

import pytest
import torch

from medfed.common.models import build_model
from medfed.common.models.cnn import Cnn, lay_out_for_cpu
from medfed.common.state_dicts import digest, read_state, write_state
from medfed.common.study_file import load_study

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"


@pytest.mark.parametrize("name", ["cnn", "resnet18", "resnet50", "densenet121"])
@pytest.mark.parametrize("channels", [1, 3])
def test_model_gives_logits_and_no_image_sees_another(name: str, channels: int) -> None:
    study = load_study(
        DEMO, [f"model.name={name}", f"data.channels={channels}", "data.image_size=32"]
    )
    model = build_model(study, 5).eval()
    images = torch.randn(3, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    together = model(images)
    assert together.shape == (3, 5)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    model.train()
    torch.testing.assert_close(model(images), together, rtol=1e-4, atol=1e-5)


def test_model_with_group_norm_has_no_running_statistics() -> None:
    study = load_study(DEMO, ["model.name=resnet18"])
    names = [type(module).__name__ for module in build_model(study, 2).modules()]
    assert "GroupNorm" in names
    assert not any("BatchNorm" in name for name in names)


def test_weights_depend_on_the_seed_only_and_leave_the_global_state_alone() -> None:
    study = load_study(DEMO)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = digest(read_state(build_model(study, 4)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert digest(read_state(build_model(study, 4))) == one
    other = load_study(DEMO, ["study.seed=8"])
    assert digest(read_state(build_model(other, 4))) != one


def test_state_survives_writing_into_another_model() -> None:
    study = load_study(DEMO)
    one = build_model(study, 4)
    other = build_model(load_study(DEMO, ["study.seed=8"]), 4)
    write_state(other, read_state(one))
    assert digest(read_state(other)) == digest(read_state(one))


@pytest.mark.parametrize("channels", [1, 3])
def test_layout_for_cpu_changes_no_weight_and_next_to_no_output(channels: int) -> None:
    torch.manual_seed(0)
    plain, laid_out = Cnn(channels, 28, 4), Cnn(channels, 28, 4)
    laid_out.load_state_dict(plain.state_dict())
    lay_out_for_cpu(laid_out)
    assert digest(read_state(laid_out)) == digest(read_state(plain))
    images = torch.randn(5, channels, 28, 28)
    features = images
    for layer in laid_out.features:
        features = layer(features)
        assert features.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(laid_out(images), plain(images), atol=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_cnn_gives_the_bits_of_relu_before_pool(spatial_dims: int) -> None:
    torch.manual_seed(0)
    model = Cnn(1, 16, 2, spatial_dims)
    usual = copy.deepcopy(model)
    for pool in (1, 4):
        layers = usual.features
        layers[pool], layers[pool + 1] = layers[pool + 1], layers[pool]
    images = torch.randn(5, 1, *(16,) * spatial_dims)
    images[:, :, :7] = 0.3  # windows full of equal values
    for network in (model, usual):
        network(images).square().sum().backward()
    assert torch.equal(model(images), usual(images))
    for mine, theirs in zip(model.parameters(), usual.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
