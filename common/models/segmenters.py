"""U-Net and Attention U-Net, 2-D and 3-D, for images of any size.

MONAI's networks, which it takes seconds to import, hence on first use. Three things differ:

- Every normalisation is what `norm` says; MONAI's Attention U-Net has BatchNorm throughout.
- The last layer is a bare 1 x 1 convolution. With residual units MONAI normalises the output maps
  themselves, each over its own image: an image without any structure could not be told.
- Images whose sides do not fit are padded with their edge and the output is cropped.

Upsampling is by transposed convolutions and padding by replication: with
`torch.use_deterministic_algorithms(True)` both have deterministic backward passes on CUDA, which
linear interpolation and reflection have not.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medfed.common.errors import DataError, StudyError
from medfed.common.study.model import SEGMENTERS

_MOST_GROUPS = 8
# Sigmoid(2) = 0.88: attention lets nearly everything through until it has learnt what to hold back.
_OPEN_GATE = 2.0
# Layer by number of dimensions.
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Segmenter(nn.Module):
    """Images [B, in_channels, *S] of any size S to logits [B, num_outputs, *S]."""

    head: tuple[str, ...] = ("output",)

    def __init__(
        self,
        network: nn.Module,
        *,
        spatial_dims: int,
        in_channels: int,
        widths: tuple[int, ...],
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.output = _CONVOLUTIONS[spatial_dims](widths[0], num_outputs, kernel_size=1)
        self._spatial_dims = spatial_dims
        self._in_channels = in_channels
        self._multiple = 2 ** (len(widths) - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Raises:
            DataError: Images of another number of dimensions or channels.
        """
        size = images.shape[2:]
        if len(size) != self._spatial_dims or images.shape[1] != self._in_channels:
            raise DataError(
                f"Expected images [B, {self._in_channels}, *S] with {self._spatial_dims} sides S, "
                f"got shape {list(images.shape)}. Set data.channels and data.dimensions to what "
                "the data are."
            )
        logits: Tensor = self.output(self.network(self._padded(images)))
        for axis, side in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, side)
        return logits

    def _padded(self, images: Tensor) -> Tensor:
        """Repeat the far edge until every side halves at every level, and never to one pixel.

        Of a single pixel GroupNorm would leave nothing.
        """
        padding: list[int] = []
        for side in reversed(images.shape[2:]):
            fitting = max(2, -(-side // self._multiple)) * self._multiple
            padding += [0, fitting - side]
        return F.pad(images, padding, mode="replicate") if any(padding) else images


def build_segmenter(
    name: str,
    *,
    spatial_dims: int,
    in_channels: int,
    num_outputs: int,
    channels: tuple[int, ...],
    norm: str,
) -> Segmenter:
    """Return the segmentation network `name` with fresh weights from torch's random state.

    Args:
        name: unet (with residual units, the first level at half the image's resolution) or
            attention_unet (the first level at the full resolution, two to three times the time).
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Channels of an image, all its views together.
        num_outputs: Logits a pixel.
        channels: Width of each level from the top, at least two; each level has half the
            resolution of the one above (the last one of unet has the same).
        norm: group (in at most 8 groups), or batch, which mixes the images of a batch.

    Raises:
        StudyError: A name, size or number that the network does not support.

    Reference: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; residual units: Kerfoot
    et al. 2019, https://doi.org/10.1007/978-3-030-12029-0_40; attention: Oktay et al. 2018,
    https://arxiv.org/abs/1804.03999
    """
    _check_supported(name, spatial_dims, in_channels, num_outputs, channels, norm)
    build = _unet if name == "unet" else _attention_unet
    network = build(spatial_dims, in_channels, channels)
    _set_norms(network, spatial_dims, norm)
    _remove_dropout(network)
    if name == "attention_unet":
        _open_gates(network)
    return Segmenter(
        network,
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        widths=channels,
        num_outputs=num_outputs,
    )


def _unet(spatial_dims: int, in_channels: int, widths: tuple[int, ...]) -> nn.Module:
    """Return a U-Net that ends in `widths[0]` feature maps."""
    from monai.networks.nets.unet import UNet

    network: nn.Module = UNet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=widths[0],
        channels=widths,
        strides=(2,) * (len(widths) - 1),
        num_res_units=2,
        act="RELU",
        norm="batch",
        # The normalisation that follows has one, and each costs every patient a gradient.
        bias=False,
    )
    return network


def _attention_unet(spatial_dims: int, in_channels: int, widths: tuple[int, ...]) -> nn.Module:
    """Return an Attention U-Net that ends in `widths[0]` feature maps."""
    from monai.networks.nets.attentionunet import AttentionUnet

    network: nn.Module = AttentionUnet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=1,
        channels=widths,
        strides=(2,) * (len(widths) - 1),
    )
    # Without its last layer, for which Segmenter has its own.
    network.model = network.get_submodule("model")[:2]  # type: ignore[index]
    return network


def _set_norms(network: nn.Module, spatial_dims: int, norm: str) -> None:
    """Replace every BatchNorm and InstanceNorm by what `norm` says, under the same names."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm | _InstanceNorm):
                setattr(parent, name, _norm(child.num_features, spatial_dims, norm))


def _norm(width: int, spatial_dims: int, norm: str) -> nn.Module:
    if norm == "batch":
        return _BATCH_NORMS[spatial_dims](width)
    return nn.GroupNorm(max(n for n in range(1, _MOST_GROUPS + 1) if width % n == 0), width)


def _remove_dropout(network: nn.Module) -> None:
    """Put an Identity in place of every dropout, whose rate is 0 but which draws under vmap."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, nn.Identity())


def _open_gates(network: nn.Module) -> None:
    from monai.networks.nets.attentionunet import AttentionBlock

    for module in network.modules():
        if isinstance(module, AttentionBlock):
            nn.init.constant_(module.psi[1].bias, _OPEN_GATE)


def _check_supported(
    name: str,
    spatial_dims: int,
    in_channels: int,
    num_outputs: int,
    widths: tuple[int, ...],
    norm: str,
) -> None:
    if name not in SEGMENTERS:
        raise StudyError(f"Expected a network of {', '.join(SEGMENTERS)}, got {name!r}.")
    if norm not in ("group", "batch"):
        raise StudyError(f'Expected model.norm "group" or "batch", got {norm!r}.')
    if spatial_dims not in (2, 3):
        raise StudyError(f"Expected data.dimensions 2 or 3, got {spatial_dims}.")
    if in_channels < 1 or num_outputs < 1:
        raise StudyError(
            f"{name}: expected at least one input channel and one output, got {in_channels} and "
            f"{num_outputs}. Set data.channels and task.classes."
        )
    # Attention works on half a level's width.
    least = 2 if name == "attention_unet" else 1
    if len(widths) < 2 or min(widths) < least:
        raise StudyError(
            f"{name}: expected two or more model.widths, each >= {least}, got {list(widths)}."
        )
