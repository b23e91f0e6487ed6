"""BatchNorm to GroupNorm: what stays, and what the new layer computes."""

import pytest
import torch
from torch import nn

from medfed.common.models.normalisation import to_group_norm


@pytest.mark.parametrize(
    ("channels", "num_groups"),
    # The largest number up to 32 that divides: 48 = 24 x 2, 80 = 20 x 4, 37 is prime, 31 too.
    [(64, 32), (32, 32), (48, 24), (80, 20), (448, 32), (37, 1), (31, 31), (1, 1)],
)
def test_groups_are_the_most_that_divide_the_channels(channels: int, num_groups: int) -> None:
    network = nn.Sequential(nn.BatchNorm2d(channels))
    to_group_norm(network)
    assert isinstance(network[0], nn.GroupNorm)
    assert network[0].num_groups == num_groups


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_weight_and_bias_stay_and_statistics_go(
    kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d],
) -> None:
    norm = kind(6, eps=0.01)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.weight.requires_grad_(False)
    network = nn.Sequential(nn.Sequential(nn.Identity(), norm.eval()))
    to_group_norm(network)
    assert list(network.state_dict()) == ["0.1.weight", "0.1.bias"]
    new = network.get_submodule("0.1")
    assert isinstance(new, nn.GroupNorm)
    assert new.weight is norm.weight
    assert new.bias is norm.bias
    assert (new.eps, new.training) == (0.01, False)


def test_group_norm_computes_by_group_with_the_old_weights() -> None:
    norm = nn.BatchNorm2d(64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(norm)
    to_group_norm(network)
    images = torch.randn(3, 64, 5, 4)
    grouped = images.reshape(3, 32, 2 * 5 * 4)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    scaled = centred / (grouped.var(dim=2, unbiased=False, keepdim=True) + norm.eps).sqrt()
    expected = scaled.reshape(images.shape) * norm.weight[:, None, None]
    torch.testing.assert_close(network(images), expected + norm.bias[:, None, None])


def test_batch_norm_without_weights_becomes_group_norm_without_weights() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4, affine=False))
    to_group_norm(network)
    assert not network.state_dict()
    assert network(torch.randn(1, 4, 3, 3)).shape == (1, 4, 3, 3)
