"""`[model]`: the network, where its weights start, and which of them train."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Name, PositiveInt, Section
from medfed.common.study.plugins import PluginOptions

CLASSIFIERS = ("cnn", "vgg16", "resnet18", "resnet50", "inception_v3", "densenet121")
SEGMENTERS = ("unet", "attention_unet")
REPORTERS = ("report_lstm",)
NETWORKS = (*CLASSIFIERS, *SEGMENTERS, *REPORTERS)
# These have no normalisation layers.
WITHOUT_NORM = ("cnn", "vgg16")
ONLY_2D = ("vgg16", "inception_v3")

Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Encoder = Literal["cnn", "vgg16", "resnet18", "resnet50", "inception_v3", "densenet121"]


class ModelSection(Section):
    """`[model]`: the network."""

    name: Name = Field(default="cnn", examples=list(NETWORKS))
    """cnn is the small one (Conv 32, pool, Conv 64, pool, Dense 128); then the classifiers by
    their names; the U-Nets segment; report_lstm writes reports. Any other name is a plug-in's."""
    options: PluginOptions = Field(default_factory=dict)
    """A plug-in's own settings."""
    norm: Literal["group", "batch"] = "group"
    """Normalisation layers. BatchNorm mixes patients: refused under DP."""
    widths: tuple[PositiveInt, ...] = (16, 32, 64, 128)
    """U-Nets: channels of each level downwards. attention_unet starts at full resolution, unet
    halves it first."""
    encoder: Encoder = "cnn"
    """report_lstm: the network that turns the image into a grid of features."""
    embedding_size: PositiveInt = 64
    """report_lstm: numbers a word becomes."""
    hidden_size: PositiveInt = 128
    """report_lstm: state of the LSTM. With tabular columns: width of their layer."""
    attention_size: PositiveInt = 64
    """report_lstm: width of the additive attention."""
    fusion: Literal["early", "late"] = "early"
    """Several views: side by side as channels, or an encoder each and their features averaged."""
    weights: str = ""
    """Where weights start: a file (.safetensors, .pth) or a URL pinned by weights_sha256."""
    weights_sha256: Sha256 = ""
    """SHA-256 of that file. `medfed simulate` fills it in for a file; a URL needs it."""
    freeze: str | tuple[str, ...] = "none"
    """none; backbone (all but the last layer); weights (all but biases and the affine part of
    normalisation, and the last layer: BitFiT); or patterns of parameter names, e.g.
    ["features.*"]. What is frozen never travels; its hash is checked at every site."""
    weight_standardisation: bool = False
    """Convolutions (not the last layer) see their weights with mean 0 and variance 1.71**2 / fan-in
    per output channel. Meant for GroupNorm under DP; docs/utility.md has what it did here."""
    low_rank: PositiveInt | None = None
    """Train a product of two matrices of this rank beside each convolution and linear layer, which
    stays as it is (LoRA); the last layer trains whole. For pretrained weights. freeze says which
    layers: none for all of them, patterns for those that they match."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.widths) < 2:
            raise ValueError(f"expected at least two widths, got {len(self.widths)}.")
        if self.weights.startswith(("http://", "https://")) and not self.weights_sha256:
            raise ValueError(
                "weights is a URL without weights_sha256. Pin it: what is loaded must be what "
                "was vetted."
            )
        if self.weights_sha256 and not self.weights:
            raise ValueError("weights_sha256 without weights. Name the file or URL.")
        return self

    @property
    def is_plugin(self) -> bool:
        """Whether the network is not one of medfed's own."""
        return self.name not in NETWORKS

    @property
    def feature_network(self) -> str:
        """The network whose normalisation `norm` sets."""
        return self.encoder if self.name in REPORTERS else self.name
