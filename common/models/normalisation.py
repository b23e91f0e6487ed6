"""From BatchNorm, which mixes the images of a batch, to GroupNorm, which sees one image alone."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_MOST_GROUPS = 32


def to_group_norm(network: nn.Module) -> None:
    """Replace every BatchNorm inside `network` by a GroupNorm with the same weight and bias.

    The state's names for weight and bias stay; running statistics go. The number of groups is the
    largest up to 32 that divides the channels.

    Reference: Wu and He 2018, https://arxiv.org/abs/1803.08494
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _group_norm(child))


def _group_norm(batch_norm: _BatchNorm) -> nn.GroupNorm:
    channels = batch_norm.num_features
    num_groups = max(n for n in range(1, _MOST_GROUPS + 1) if channels % n == 0)
    norm = nn.GroupNorm(num_groups, channels, eps=batch_norm.eps, affine=batch_norm.affine)
    # The very parameters, so that values, device and what is frozen stay.
    norm.weight, norm.bias = batch_norm.weight, batch_norm.bias
    return norm.train(batch_norm.training)
