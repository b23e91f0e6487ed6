"""Every classification network: shapes, sizes, names, and that no image sees another."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.errors import StudyError
from medfed.common.models import classifiers
from medfed.common.models.classifiers import build_classifier
from medfed.common.models.normalisation import to_group_norm
from medfed.common.models.vgg import Vgg16

pytestmark = pytest.mark.usefixtures("small_vgg")

# Name, dimensions, side of a small image.
SMALL = [
    ("cnn", 2, 16),
    ("cnn", 3, 12),
    ("vgg16", 2, 32),
    ("resnet18", 2, 16),
    ("resnet18", 3, 16),
    ("resnet50", 2, 16),
    ("resnet50", 3, 16),
    ("inception_v3", 2, 75),
    ("densenet121", 2, 32),
    ("densenet121", 3, 29),
]


def _network(
    name: str,
    dims: int = 2,
    size: int = 75,
    *,
    channels: int = 3,
    outputs: int = 5,
    norm: str = "group",
) -> nn.Module:
    torch.manual_seed(1)
    return build_classifier(
        name,
        spatial_dims=dims,
        in_channels=channels,
        num_outputs=outputs,
        image_size=size,
        norm=norm,
    )


def _images(num: int, channels: int, dims: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, channels, *[size] * dims, generator=generator)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("name", "dims", "size"), SMALL)
def test_network_gives_logits_and_a_grid(name: str, dims: int, size: int, channels: int) -> None:
    network = _network(name, dims, size, channels=channels)
    images = _images(2, channels, dims, size)
    with torch.no_grad():
        assert network(images).shape == (2, 5)
        grid = network.grid(images)  # type: ignore[operator]
    assert grid.shape[:2] == (2, network.num_features)
    assert grid.dim() == 2 + dims
    assert not any("BatchNorm" in type(m).__name__ for m in network.modules())
    assert not any(isinstance(m, nn.Dropout) for m in network.modules())


@pytest.mark.parametrize(("name", "dims", "size"), SMALL)
def test_head_names_the_last_layer(name: str, dims: int, size: int) -> None:
    network = _network(name, dims, size, outputs=7)
    (head,) = network.head  # type: ignore[misc]
    layer = network.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 7
    # The head follows the features: without its weights nothing of the image is left.
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(7.0))
        logits = network(_images(2, 3, dims, size))
    torch.testing.assert_close(logits, torch.arange(7.0).expand(2, 7))


@pytest.mark.parametrize(("name", "dims", "size"), SMALL)
def test_no_image_sees_another_in_training(name: str, dims: int, size: int) -> None:
    network = _network(name, dims, size).train()
    images = _images(2, 3, dims, size)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        other = network(torch.stack([images[0], 100 * images[1] + 7]))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together[0], other[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together[1], other[1], rtol=1e-3, atol=1e-4)


# Without BatchNorm and with it: the grid is one position, or more than one for a lone image.
SMALLEST = {
    "cnn": (10, 10),
    "vgg16": (32, 32),
    "resnet18": (1, 33),
    "resnet50": (1, 33),
    "inception_v3": (75, 107),
    "densenet121": (29, 61),
}


def _sizes() -> Iterator[tuple[str, int, str, int]]:
    for name, sizes in SMALLEST.items():
        for norm, size in zip(("group", "batch"), sizes, strict=True):
            yield name, 2, norm, size
            if name in ("cnn", "resnet18", "densenet121"):
                yield name, 3, norm, size


@pytest.mark.parametrize(("name", "dims", "norm", "size"), _sizes())
def test_smallest_size_trains_on_one_image_and_one_less_is_refused(
    name: str, dims: int, norm: str, size: int
) -> None:
    network = _network(name, dims, size, channels=1, norm=norm)
    network(_images(1, 1, dims, size)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with pytest.raises(StudyError, match=rf"data.image_size >= {size}, got {size - 1}") as caught:
        _network(name, dims, size - 1, channels=1, norm=norm)
    assert f"Set data.image_size = {size}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("vgg16", "group"),
        ("inception_v3", "group"),
        ("densenet121", "group"),
        ("inception_v3", "batch"),
        ("densenet121", "batch"),
        ("resnet18", "batch"),
        ("resnet50", "batch"),
    ],
)
def test_one_less_than_the_smallest_size_fails_indeed(
    name: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SMALLEST[name][norm == "batch"] - 1
    monkeypatch.setitem(classifiers._SMALLEST, name, (1, 1))
    network = _network(name, 2, size, channels=1, norm=norm)
    with pytest.raises((RuntimeError, ValueError)):
        network(_images(1, 1, 2, size))


def test_cnn_of_one_less_than_the_smallest_size_has_no_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(classifiers._SMALLEST, "cnn", (1, 1))
    smallest, less = (_network("cnn", 2, size, channels=1) for size in (10, 9))
    assert smallest.get_parameter("classifier.1.weight").shape == (128, 64)
    assert less.get_parameter("classifier.1.weight").shape == (128, 0)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "alexnet"}, "resnet18.*got 'alexnet'"),
        ({"norm": "layer"}, "got 'layer'"),
        ({"spatial_dims": 1}, "2 or 3, got 1"),
        ({"name": "vgg16", "spatial_dims": 3}, "data.dimensions = 2, got 3.*use cnn, resnet18"),
        ({"name": "inception_v3", "spatial_dims": 3}, "data.dimensions = 2, got 3"),
        ({"in_channels": 0}, "at least one input channel"),
        ({"num_outputs": 0}, "one output"),
    ],
)
def test_what_no_network_supports_is_refused(changed: dict[str, object], message: str) -> None:
    arguments = {
        "name": "resnet18",
        "spatial_dims": 2,
        "in_channels": 1,
        "num_outputs": 2,
        "image_size": 80,
        "norm": "group",
    }
    with pytest.raises(StudyError, match=message):
        build_classifier(**{**arguments, **changed})  # type: ignore[arg-type]


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _resnet_names(num_blocks: list[int], num_convs: int) -> set[str]:
    """The names in torchvision's ResNet files, by their rule."""
    names = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{leaf}" for leaf in NORM}
    for layer, count in enumerate(num_blocks, start=1):
        for block in range(count):
            prefix = f"layer{layer}.{block}"
            for conv in range(1, num_convs + 1):
                names |= {f"{prefix}.conv{conv}.weight"}
                names |= {f"{prefix}.bn{conv}.{leaf}" for leaf in NORM}
            # A shortcut where the grid halves or the channels change.
            if block == 0 and (layer > 1 or num_convs == 3):
                names |= {f"{prefix}.downsample.0.weight"}
                names |= {f"{prefix}.downsample.1.{leaf}" for leaf in NORM}
    return names


@pytest.mark.parametrize(
    ("name", "names", "num_parameters"),
    # Numbers of parameters as torchvision publishes them for 1000 classes of colour images.
    [
        ("resnet18", _resnet_names([2, 2, 2, 2], 2), 11_689_512),
        ("resnet50", _resnet_names([3, 4, 6, 3], 3), 25_557_032),
    ],
)
def test_resnet_is_torchvisions(name: str, names: set[str], num_parameters: int) -> None:
    network = _network(name, outputs=1000, norm="batch")
    state = network.state_dict()
    assert set(state) == names
    assert sum(p.numel() for p in network.parameters()) == num_parameters
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    strides = {m.stride for n, m in network.named_modules() if n == "conv1"}
    assert strides == {(2, 2)}


def test_vgg16_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfed.common.models.vgg._DENSE", 4096)
    # Without its values: half a gigabyte that nobody looks at.
    with torch.device("meta"):
        network = Vgg16(3, 1000)
    # Convolution, ReLU for each; a pooling after 2, 4, 7, 10 and 13 of them.
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    layers = [f"features.{n}" for n in convolutions] + [f"classifier.{n}" for n in (0, 3, 6)]
    names = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    state = network.state_dict()
    assert list(state) == names
    assert len(names) == 32
    assert sum(p.numel() for p in network.parameters()) == 138_357_544
    assert state["classifier.0.weight"].shape == (4096, 512 * 7 * 7)


def test_inception_is_torchvisions() -> None:
    network = _network("inception_v3", size=107, outputs=1000, norm="batch")
    state = network.state_dict()
    # 94 convolutions without bias, each with a BatchNorm, and fc.
    assert len(state) == 94 * (1 + len(NORM)) + 2
    # torchvision states 27,161,264; its auxiliary classifier has 1x1 768 -> 128, 5x5 128 -> 768,
    # two BatchNorms of two parameters a channel, and 768 -> 1000 with bias.
    auxiliary = 768 * 128 + 128 * 768 * 25 + 2 * (128 + 768) + 768 * 1000 + 1000
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - auxiliary
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6b.branch7x7dbl_5.conv.weight": (192, 128, 1, 7),
        "Mixed_6c.branch7x7_3.conv.weight": (192, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
        "Mixed_7c.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3dbl_3a.bn.running_var": (384,),
        "fc.weight": (1000, 2048),
    }.items():
        assert state[name].shape == shape, name
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.001}


def test_densenet_has_torchvisions_size() -> None:
    network = _network("densenet121", outputs=1000, norm="batch")
    # 120 convolutions, 121 BatchNorms, the classifier. Its names: test_pretrained.py.
    assert len(network.state_dict()) == 120 + 121 * len(NORM) + 2 == 727
    assert sum(p.numel() for p in network.parameters()) == 7_978_856


def _monais(name: str, dims: int) -> nn.Module:
    from monai.networks.nets import DenseNet121, resnet18, resnet50

    if name == "densenet121":
        network: nn.Module = DenseNet121(spatial_dims=dims, in_channels=3, out_channels=5)
    else:
        build = resnet18 if name == "resnet18" else resnet50
        network = build(
            spatial_dims=dims,
            n_input_channels=3,
            num_classes=5,
            conv1_t_stride=2,
            bias_downsample=False,
        )
    to_group_norm(network)
    return network


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
@pytest.mark.parametrize(("dims", "size"), [(2, 40), (3, 29), (3, 38)])
def test_network_computes_what_monais_does(name: str, dims: int, size: int) -> None:
    network = _network(name, dims, size)
    monais = _monais(name, dims)
    monais.load_state_dict(network.state_dict())
    images = _images(2, 3, dims, size)
    with torch.no_grad():
        torch.testing.assert_close(network(images), monais(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "densenet121"])
def test_volumes_meet_no_pooling_without_a_deterministic_backward_pass(name: str) -> None:
    network = _network(name, 3, 64, norm="batch")
    used: list[str] = []
    for module in network.modules():
        kind = type(module).__name__
        module.register_forward_hook(lambda *_, kind=kind: used.append(kind))  # type: ignore[misc]
    with torch.no_grad():
        network.eval()(_images(1, 3, 3, 64))
    assert "MaxPool3d" in used  # ours, which has torch's name
    assert not {"AvgPool3d", "AdaptiveAvgPool3d"} & set(used)
    assert not any(isinstance(module, nn.MaxPool3d) for module in network.modules())


def test_vgg_forward_is_features_pooling_and_dense_layers() -> None:
    network = _network("vgg16", size=40)
    images = _images(2, 3, 2, 100)
    state = network.state_dict()
    features = images
    for layer in range(31):
        if layer in (4, 9, 16, 23, 30):
            features = F.max_pool2d(features, 2)
        elif f"features.{layer}.weight" in state:
            weight, bias = (state[f"features.{layer}.{leaf}"] for leaf in ("weight", "bias"))
            features = F.relu(F.conv2d(features, weight, bias, padding=1))
    features = F.adaptive_avg_pool2d(features, 7).flatten(1)
    for layer in (0, 3, 6):
        weight, bias = (state[f"classifier.{layer}.{leaf}"] for leaf in ("weight", "bias"))
        features = F.linear(features, weight, bias)
        features = F.relu(features) if layer < 6 else features
    with torch.no_grad():
        torch.testing.assert_close(network(images), features)


class Twin:
    """Inception's blocks written out by hand, on the layers of the network under test."""

    def __init__(self, network: nn.Module, block: str) -> None:
        self._network = network
        self._block = block

    def conv(self, features: Tensor, *names: str, stride: int = 1) -> Tensor:
        """Convolution, GroupNorm, ReLU, one after the other; the last with `stride`."""
        for name in names:
            layer = self._network.get_submodule(f"{self._block}.{name}")
            weight, norm = layer.get_parameter("conv.weight"), layer.get_submodule("bn")
            last = stride if name == names[-1] else 1
            padding = (weight.shape[2] // 2, weight.shape[3] // 2) if last == 1 else 0
            features = F.relu(norm(F.conv2d(features, weight, stride=last, padding=padding)))
        return features


@pytest.mark.parametrize("block", ["Mixed_5c", "Mixed_6a", "Mixed_6d", "Mixed_7a", "Mixed_7c"])
def test_inception_block_is_its_branches_side_by_side(block: str) -> None:
    network = _network("inception_v3")
    channels = {"Mixed_5c": 256, "Mixed_6a": 288, "Mixed_6d": 768, "Mixed_7a": 768}
    x = _images(2, channels.get(block, 2048), 2, 7)
    conv = Twin(network, block).conv
    smooth = F.avg_pool2d(x, 3, stride=1, padding=1)
    largest = F.max_pool2d(x, 3, stride=2)
    branches = {
        "Mixed_5c": lambda: (
            conv(x, "branch1x1"),
            conv(x, "branch5x5_1", "branch5x5_2"),
            conv(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            conv(smooth, "branch_pool"),
        ),
        "Mixed_6a": lambda: (
            conv(x, "branch3x3", stride=2),
            conv(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", stride=2),
            largest,
        ),
        "Mixed_6d": lambda: (
            conv(x, "branch1x1"),
            conv(x, *(f"branch7x7_{n}" for n in (1, 2, 3))),
            conv(x, *(f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5))),
            conv(smooth, "branch_pool"),
        ),
        "Mixed_7a": lambda: (
            conv(x, "branch3x3_1", "branch3x3_2", stride=2),
            conv(x, *(f"branch7x7x3_{n}" for n in (1, 2, 3, 4)), stride=2),
            largest,
        ),
        "Mixed_7c": lambda: (
            conv(x, "branch1x1"),
            conv(x, "branch3x3_1", "branch3x3_2a"),
            conv(x, "branch3x3_1", "branch3x3_2b"),
            conv(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a"),
            conv(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3b"),
            conv(smooth, "branch_pool"),
        ),
    }
    with torch.no_grad():
        expected = torch.cat(branches[block](), dim=1)
        torch.testing.assert_close(network.get_submodule(block)(x), expected)
