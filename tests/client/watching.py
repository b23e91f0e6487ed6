"""What a GPU would object to in a recorded step, seen without one: on shapes alone.

Networks and batches are on torch's "meta" device: they have shapes and no numbers. What asks for a
number has none to get; what is made by the processor is the only tensor that is elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medfed.client.recording import Body, Replay

META = torch.device("meta")

# How many numbers come out depends on numbers: the processor waits for them.
_ASKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

# torch.use_deterministic_algorithms: "will throw a RuntimeError" on CUDA.
_REFUSED = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "_ctc_loss_backward",
    "_embedding_bag",
    "histc",
    "bincount",
    "kthvalue",
    "median",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "cumsum",
    "cumprod",
}

# The same page: "will act deterministically". On CUDA their deterministic form sorts first, many
# kernels in place of one, which could not be recorded with each version of torch
# (https://github.com/pytorch/pytorch/pull/105439).
_SORTED = {
    "put",
    "index_put",
    "_unsafe_index_put",
    "_unsafe_masked_index_put_accumulate",
    "_index_put_impl",
    "index_add",
    "index_copy",
    "scatter_add",
    "scatter_reduce",
    "max_pool3d_with_indices_backward",
    "replication_pad1d_backward",
    "replication_pad2d_backward",
    "replication_pad3d_backward",
}


# They copy from the processor: on the meta device there is nothing to copy, hence nothing to see.
_COPIES = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor}


@contextmanager
def watched() -> Iterator[None]:
    """Fail at the first operation that a recording of a GPU's work may not hold."""
    with _Calls(), _Operations():
        yield


class _Calls(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        assert func not in _COPIES, f"{func}: copies from the processor"
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        objection = _objection(func, tree_leaves((args, dict(named), result)))
        assert not objection, f"{func}: {objection}"
        return result


def _objection(func: Any, leaves: Iterable[Any]) -> str:
    name = func.overloadpacket.__name__.removesuffix("_")
    if _ASKS & set(func.tags):
        return "waits for numbers"
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "draws at random, by no seed of the study"
    if name in _REFUSED:
        return "has no deterministic form on a GPU"
    if name in _SORTED or str(func) == "aten.scatter.src":
        return "has a deterministic form on a GPU that sorts, and may not be recordable"
    if any(isinstance(leaf, Tensor) and leaf.device != META for leaf in leaves):
        return "has a tensor on the processor"
    return ""


class Watcher:
    """A recorder: lets the work through, watched, once, and counts."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, body: Body) -> tuple[Replay, Tensor]:
        with watched():
            result = body()
        self.recorded += 1
        return _nothing, result


def _nothing() -> None:
    """Replay: there are no numbers that it could change."""


def stand_in(watcher: Watcher) -> Callable[..., Watcher]:
    """Return what takes the place of `medfed.client.recording.recorder`."""

    def recorder(device: torch.device, *, enabled: bool = True) -> Watcher:
        return watcher

    return recorder
