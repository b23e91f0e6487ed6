"""Weights of another training into a network: names mapped, what differs adapted or refused.

Names are ours, or torchvision's (its DenseNet is named otherwise than MONAI's; its Inception has an
auxiliary classifier `AuxLogits`, which ours has not). Weights of a classification network also load
into a larger model that holds it as `encoder`, or several times as `encoders`.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.models.weights_files import load_weights_file, resolve_weights

__all__ = ["LoadReport", "initialise_from", "load_weights_file", "resolve_weights"]

logger = logging.getLogger(__name__)

# torchvision's names, those of its older files included, to MONAI's.
_RENAMES = (
    (re.compile(r"^(.*denselayer\d+)\.(norm|relu|conv)\.?([12])\."), r"\1.layers.\2\3."),
    (re.compile(r"^classifier\.(weight|bias)$"), r"class_layers.out.\1"),
)
_AUXILIARY = "AuxLogits."
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# What weights of colour and of grey images were trained on.
_FILE_CHANNELS = (3, 1)
_MOST_LISTED = 20


@dataclass(frozen=True)
class LoadReport:
    """What became of a weights file.

    Attributes:
        origin: The file or URL.
        loaded: Names of the model that were taken as they are.
        adapted: First convolutions, changed to the model's number of input channels.
        kept: Names of the model that stay as initialised: a classifier of another number of
            outputs, and what a file of an encoder does not hold.
        ignored: Names of the file that are not used.
    """

    origin: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for word in ("adapted", "kept", "ignored"):
            names: tuple[str, ...] = getattr(self, word)
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                parts.append(f"{word}: {', '.join(names[:4])}{more}")
        return f"{self.origin}: {'; '.join(parts)}"


def initialise_from(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> LoadReport:
    """Copy `tensors` into `model` by name; all or, when anything does not fit, nothing.

    Left out on purpose: BatchNorm's statistics where the model has GroupNorm; the auxiliary
    classifier of Inception; the final classifier (`model.head`) where the numbers of outputs differ
    or the file has none. A first convolution for 3 channels, or for 1, is adapted to another number
    C: the sum over the channels, divided by C, so that an image of equal channels gives the same
    response.

    Args:
        model: The network; its other parameters stay as they are.
        tensors: Weights by name, as `load_weights_file` returns them.
        origin: For messages: where the weights come from.

    Raises:
        StudyError: Names or shapes that do not fit, listed.
    """
    own = model.state_dict()
    plan = _Plan()
    for prefix in _where_it_fits(model, tensors, own):
        _Loader(model, own, prefix).plan(tensors, plan)
    if plan.problems:
        raise StudyError(_listed(plan.problems, origin))
    with torch.no_grad():
        for name, tensor in plan.values.items():
            own[name].copy_(tensor)
    report = LoadReport(
        origin=origin,
        loaded=tuple(name for name in own if name in plan.values and name not in plan.adapted),
        adapted=tuple(plan.adapted),
        kept=tuple(name for name in own if name not in plan.values),
        ignored=tuple(dict.fromkeys(plan.ignored)),
    )
    logger.info("%s", report)
    return report


@dataclass
class _Plan:
    values: dict[str, Tensor] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Loader:
    """Plans what one network takes from a file; the network is the part of `model` at `prefix`."""

    def __init__(self, model: nn.Module, own: Mapping[str, Tensor], prefix: str) -> None:
        self._own = own
        self._prefix = prefix
        network = model.get_submodule(prefix.removesuffix("."))
        self._modules = dict(network.named_modules())
        self._head = tuple(f"{name}." for name in getattr(network, "head", ()))
        convolutions = (
            name
            for name, module in self._modules.items()
            if isinstance(module, nn.Conv2d | nn.Conv3d)
        )
        self._first = f"{next(convolutions, '')}.weight"

    def plan(self, tensors: Mapping[str, Tensor], plan: _Plan) -> None:
        """Add to `plan` what becomes of each tensor, and what is missing."""
        given = {_our_name(name, self._own, self._prefix): name for name in tensors}
        keep_head = self._has_other_outputs(given, tensors)
        for name, file_name in given.items():
            full = self._prefix + name
            if self._is_left_out(name, keep_head):
                plan.ignored.append(file_name)
            elif full not in self._own:
                shape = list(tensors[file_name].shape)
                plan.problems.append(f"{file_name}: expected nothing of this name, got {shape}")
            else:
                self._plan_one(name, file_name, tensors[file_name], plan)
        for full, tensor in self._own.items():
            name = full.removeprefix(self._prefix)
            may_miss = name.endswith("num_batches_tracked") or (keep_head and self._in_head(name))
            if full.startswith(self._prefix) and name not in given and not may_miss:
                plan.problems.append(f"{full}: expected {list(tensor.shape)}, got nothing")

    def _plan_one(self, name: str, file_name: str, tensor: Tensor, plan: _Plan) -> None:
        full = self._prefix + name
        expected = self._own[full].shape
        if tensor.shape == expected:
            plan.values[full] = tensor
        elif name == self._first and _differs_in_channels(tensor.shape, expected):
            plan.values[full] = _with_channels(tensor, expected[1])
            plan.adapted.append(full)
        else:
            plan.problems.append(
                f"{file_name}: expected {list(expected)}, got {list(tensor.shape)}"
            )

    def _in_head(self, name: str) -> bool:
        return bool(self._head) and name.startswith(self._head)

    def _has_other_outputs(self, given: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
        """Whether the file's final classifier is none, or one of other outputs alone."""
        pairs = [
            (tensors[file_name].shape, self._own[self._prefix + name].shape)
            for name, file_name in given.items()
            if self._in_head(name) and self._prefix + name in self._own
        ]
        return all(got[0:1] != own[0:1] and got[1:] == own[1:] for got, own in pairs)

    def _is_left_out(self, name: str, keep_head: bool) -> bool:
        if self._in_head(name) and keep_head:
            return True
        if self._prefix + name in self._own:
            return False
        parent, _, leaf = name.rpartition(".")
        without_statistics = isinstance(self._modules.get(parent), nn.GroupNorm)
        return name.startswith(_AUXILIARY) or (leaf in _STATISTICS and without_statistics)


def _where_it_fits(
    model: nn.Module, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Return the prefixes of the networks to load: the model itself, or its encoders."""
    encoders = [name for name, _ in model.named_modules() if re.fullmatch(r"encoders\.\d+", name)]
    choices = [("",), ("encoder.",), tuple(f"{name}." for name in encoders)]

    def num_fitting(choice: tuple[str, ...]) -> int:
        if not choice:
            return 0
        return sum(choice[0] + _our_name(name, own, choice[0]) in own for name in tensors)

    # The first of equals: the model itself.
    return max(choices, key=num_fitting)


def _our_name(name: str, own: Mapping[str, Tensor], prefix: str) -> str:
    if prefix + name in own:
        return name
    for pattern, ours in _RENAMES:
        name = pattern.sub(ours, name)
    return name


def _differs_in_channels(got: torch.Size, expected: torch.Size) -> bool:
    return (
        len(got) == len(expected)
        and got[1] in _FILE_CHANNELS
        and (got[0], *got[2:]) == (expected[0], *expected[2:])
    )


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """Spread the response to equal channels over `channels`: the sum for a single one."""
    total = weight.sum(dim=1, keepdim=True)
    return (total / channels).expand(-1, channels, *[-1] * (weight.dim() - 2))


def _listed(problems: list[str], origin: str) -> str:
    shown = "".join(f"\n  {problem}" for problem in problems[:_MOST_LISTED])
    left = len(problems) - _MOST_LISTED
    more = f"\n  and {left} more" if left > 0 else ""
    return (
        f"{origin} does not fit the model:{shown}{more}\n"
        "Set model.weights to weights of this very network, or model.name (and model.norm) to the "
        "network that they are of."
    )
