"""The classification networks by name, checked against what each can take.

Every one is an `nn.Module` with `forward(images)` -> logits [B, num_outputs], `grid(images)` ->
features [B, num_features, *grid] before pooling, `num_features`, and `head`: the names of the
modules that make up the final classifier (all else is the backbone).
"""

from torch import nn

from medfed.common.errors import StudyError
from medfed.common.models.cnn import Cnn
from medfed.common.models.inception import InceptionV3
from medfed.common.models.normalisation import to_group_norm
from medfed.common.models.vgg import Vgg16
from medfed.common.study.model import CLASSIFIERS, ONLY_2D

# Smallest side of an image, pixels: without BatchNorm, and with it. BatchNorm cannot train on a
# batch of one image (an epoch's last may be one) that has shrunk to a single position.
_SMALLEST = {
    "cnn": (10, 10),
    "vgg16": (32, 32),
    "resnet18": (1, 33),
    "resnet50": (1, 33),
    "inception_v3": (75, 107),
    "densenet121": (29, 61),
}


def build_classifier(
    name: str,
    *,
    spatial_dims: int = 2,
    in_channels: int,
    num_outputs: int,
    image_size: int,
    norm: str,
) -> nn.Module:
    """Return the classification network `name` with fresh weights from torch's random state.

    Args:
        name: cnn, vgg16, resnet18, resnet50, inception_v3 or densenet121.
        spatial_dims: 2 for images, 3 for volumes (not vgg16, not inception_v3).
        in_channels: Channels of an image, all its views together.
        num_outputs: Logits an image.
        image_size: Length of every side, pixels or voxels.
        norm: group, or batch, which mixes the images of a batch. cnn and vgg16 have neither.

    Raises:
        StudyError: A name, size or number that the network does not support.
    """
    _check_supported(name, spatial_dims, in_channels, num_outputs, norm)
    _check_size(name, image_size, norm)
    network = _build(name, spatial_dims, in_channels, num_outputs, image_size)
    if norm == "group":
        to_group_norm(network)
    return network


def _build(
    name: str, spatial_dims: int, in_channels: int, num_outputs: int, image_size: int
) -> nn.Module:
    if name == "cnn":
        return Cnn(in_channels, image_size, num_outputs, spatial_dims)
    if name == "vgg16":
        return Vgg16(in_channels, num_outputs)
    if name == "inception_v3":
        return InceptionV3(in_channels, num_outputs)
    # MONAI takes seconds to import, and only these need it.
    from medfed.common.models.monai_networks import DenseNetClassifier, ResNetClassifier

    if name == "densenet121":
        return DenseNetClassifier(
            spatial_dims=spatial_dims, in_channels=in_channels, num_outputs=num_outputs
        )
    return ResNetClassifier(
        name, spatial_dims=spatial_dims, in_channels=in_channels, num_outputs=num_outputs
    )


def _check_supported(
    name: str, spatial_dims: int, in_channels: int, num_outputs: int, norm: str
) -> None:
    if name not in CLASSIFIERS:
        raise StudyError(f"Expected a network of {', '.join(CLASSIFIERS)}, got {name!r}.")
    if norm not in ("group", "batch"):
        raise StudyError(f'Expected model.norm "group" or "batch", got {norm!r}.')
    if spatial_dims not in (2, 3):
        raise StudyError(f"Expected data.dimensions 2 or 3, got {spatial_dims}.")
    if spatial_dims == 3 and name in ONLY_2D:
        others = ", ".join(other for other in CLASSIFIERS if other not in ONLY_2D)
        raise StudyError(
            f"{name} is for images: expected data.dimensions = 2, got 3. For volumes use {others}."
        )
    if in_channels < 1 or num_outputs < 1:
        raise StudyError(
            f"{name}: expected at least one input channel and one output, got {in_channels} and "
            f"{num_outputs}. Set data.channels and task.classes."
        )


def _check_size(name: str, image_size: int, norm: str) -> None:
    without, with_batch_norm = _SMALLEST[name]
    if image_size < without:
        raise StudyError(
            f"{name}: expected data.image_size >= {without}, got {image_size}. "
            f"Set data.image_size = {without} or more, or use a smaller network."
        )
    if norm == "batch" and image_size < with_batch_norm:
        raise StudyError(
            f'{name} with model.norm = "batch": expected data.image_size >= {with_batch_norm}, '
            f"got {image_size}, at which a batch of one image cannot be normalised. "
            f'Set data.image_size = {with_batch_norm} or more, or model.norm = "group".'
        )
