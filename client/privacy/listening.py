"""Puts nodes of autograd that write gradients down in place of functions of PyTorch.

While `listening` is on, functions of PyTorch that are called with a parameter that trains
(`F.linear`, `F.group_norm`, convolutions, ...) run as those of `layer_nodes` and `norm_nodes`. It
is the function that is listened to, not the module: low-rank matrices and layers that are called
many times are written down like any other.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from medfed.client.privacy import layer_nodes, norm_nodes
from medfed.client.privacy.layer_records import Records

_LISTENERS: dict[Any, Callable[..., Tensor]] = {
    F.linear: layer_nodes.linear,
    F.conv1d: layer_nodes.convolution,
    F.conv2d: layer_nodes.convolution,
    F.conv3d: layer_nodes.convolution,
    F.conv_transpose1d: layer_nodes.transposed_convolution,
    F.conv_transpose2d: layer_nodes.transposed_convolution,
    F.conv_transpose3d: layer_nodes.transposed_convolution,
    F.group_norm: norm_nodes.group_norm,
    F.layer_norm: norm_nodes.layer_norm,
    F.prelu: layer_nodes.prelu,
    F.embedding: layer_nodes.embedding,
}


def listening(records: Records) -> TorchFunctionMode:
    """Return the context in which the forward pass is to run, for `records` to be written."""
    return _Listening(records)


class _Listening(TorchFunctionMode):
    """Puts our nodes of autograd in place of functions that are called with what trains."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        listener = _LISTENERS.get(func)
        if listener is None:
            return func(*args, **(kwargs or {}))
        return listener(self._records, *args, **(kwargs or {}))
