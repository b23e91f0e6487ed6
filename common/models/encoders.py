"""What a larger model needs of a classification network: its grid of features, and no more."""

from typing import Protocol

from torch import Tensor, nn


class Encoder(Protocol):
    """A classification network of `common/models/classifiers.py`, seen as images to features."""

    num_features: int
    head: tuple[str, ...]

    def grid(self, images: Tensor) -> Tensor:
        """Return features [B, num_features, *grid] of images [B, C, *S]."""
        ...


def remove_classifier(network: nn.Module) -> None:
    """Remove all that follows `network.grid`: the direct child that `network.head` is part of.

    Left in place, its weights would travel with every update and be noised under DP for nothing.
    Afterwards `network.head` names the child, so that a weights file's classifier is still known
    as one.
    """
    names: tuple[str, ...] = getattr(network, "head", ())
    children = tuple(dict.fromkeys(name.partition(".")[0] for name in names))
    for child in children:
        setattr(network, child, nn.Identity())
    network.head = children  # type: ignore[assignment]
