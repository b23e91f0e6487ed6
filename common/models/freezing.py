"""Which parameters train. What does not train is never sent; its digest is compared instead."""

import difflib
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medfed.common.errors import StudyError
from medfed.common.state_dicts import digest, read_state

_NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm, _InstanceNorm)


def freeze(model: nn.Module, what: str | tuple[str, ...]) -> None:
    """Set which parameters of `model` train: all those that `what` does not freeze.

    Args:
        model: The network; `model.head` names its final classifier.
        what: "none"; "backbone", everything but `model.head`; "weights", everything but biases,
            the scale and shift of normalisations, and `model.head` (BitFiT: Zaken et al. 2021,
            https://arxiv.org/abs/2106.10199; under DP: Bu et al. 2022,
            https://arxiv.org/abs/2210.00036); or one or more patterns of parameter names, in which
            * stands for anything, dots included.

    Raises:
        StudyError: A pattern that no parameter matches, nothing left to train, "backbone" or
            "weights" of a network that has no head, or "weights" of one that has no biases.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = _frozen_names(model, names, what)
    if len(frozen) == len(names):
        raise StudyError(
            f"model.freeze = {what!r} leaves nothing to train. Leave out the last layer, e.g. "
            f'"backbone"; parameters are {_some(names[-4:])}.'
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def trained_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what training changes, in the state's order.

    These are the parameters that train, and the buffers of modules that do: a BatchNorm's
    statistics are here unless its weight and bias are all frozen (`set_training_mode`).
    """
    trained = {
        name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad
    }
    for name, module in model.named_modules():
        if not _is_frozen(module):
            prefix = f"{name}." if name else ""
            trained |= {prefix + buffer for buffer, _ in module.named_buffers(recurse=False)}
    return tuple(name for name in model.state_dict() if name in trained)


def trained_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return those of `trained_names` that have gradients: no statistics, no counters."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return tuple(name for name in trained_names(model) if name in parameters)


def normalisation_names(model: nn.Module) -> tuple[str, ...]:
    """Return those of `trained_names` that are of normalisations: scale, shift and statistics."""
    found = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name in (
            *(name for name, _ in module.named_parameters(recurse=False)),
            *(name for name, _ in module.named_buffers(recurse=False)),
        )
    }
    return tuple(name for name in trained_names(model) if name in found)


def frozen_state_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all that training does not change: names, types, shapes and bytes."""
    trained = set(trained_names(model))
    frozen = [name for name in model.state_dict() if name not in trained]
    return digest(read_state(model, frozen))


def set_training_mode(model: nn.Module) -> None:
    """Put `model` into training mode, except modules whose own parameters are all frozen.

    A frozen BatchNorm normalises by its statistics as they are and leaves them as they are.
    """
    model.train()
    for module in model.modules():
        if _is_frozen(module):
            module.training = False


def _is_frozen(module: nn.Module) -> bool:
    """Whether the module has parameters of its own and none of them trains."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _frozen_names(model: nn.Module, names: list[str], what: str | tuple[str, ...]) -> set[str]:
    if what == "none":
        return set()
    if what == "backbone":
        return set(names) - _head_names(model, names, what)
    if what == "weights":
        return set(names) - _head_names(model, names, what) - _bias_names(model, names)
    frozen: set[str] = set()
    for pattern in (what,) if isinstance(what, str) else what:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            nearest = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
            raise StudyError(
                f"model.freeze: expected a pattern of parameter names, got {pattern!r}, which "
                f"matches none. The nearest names are {_some(nearest)}."
            )
        frozen |= matched
    return frozen


def _head_names(model: nn.Module, names: list[str], what: str) -> set[str]:
    head = tuple(f"{prefix}." for prefix in getattr(model, "head", ()))
    found = {name for name in names if head and name.startswith(head)}
    if not found:
        raise StudyError(
            f'model.freeze = "{what}": expected a network with a final classifier, got '
            f"{type(model).__name__}, which has none. Give patterns of parameter names, such as "
            f"{_some(names[:4])}."
        )
    return found


def _bias_names(model: nn.Module, names: list[str]) -> set[str]:
    """Names of biases and of the scale and shift of normalisations, outside the final classifier.

    Both are what a layer adds to or multiplies each channel with: vectors, a number a channel.
    """
    found = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, _NORMS)
    }
    head = _head_names(model, names, "weights")
    if not found - head:
        raise StudyError(
            f'model.freeze = "weights": expected biases or normalisations to train, got '
            f"{type(model).__name__}, which has none outside its final classifier. Set "
            'model.freeze = "backbone", which trains as much.'
        )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names)
