"""Weights of another training: names, what is adapted, kept, ignored, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.models.classifiers import build_classifier
from medfed.common.models.fusion import Fusion
from medfed.common.models.pretrained import initialise_from, load_weights_file
from medfed.common.models.report_lstm import ReportModel
from medfed.common.state_dicts import digest, read_state

pytestmark = pytest.mark.usefixtures("small_vgg")

NAMES = ["cnn", "vgg16", "resnet18", "resnet50", "inception_v3", "densenet121"]


def _network(
    name: str, *, seed: int = 1, channels: int = 3, outputs: int = 4, norm: str = "batch"
) -> nn.Module:
    torch.manual_seed(seed)
    network = build_classifier(
        name, in_channels=channels, num_outputs=outputs, image_size=107, norm=norm
    )
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.1, 0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def _images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 107, 107, generator=torch.Generator().manual_seed(3))


def _torchvision(network: nn.Module, *, old: bool = False) -> dict[str, Tensor]:
    """The network's state under the names of torchvision's files, `old` as before its 0.3."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        spelling = r".\1.\2." if old else r".\1\2."
        name = re.sub(r"\.layers\.(norm|conv)([12])\.", spelling, name)
        tensors[name.replace("class_layers.out.", "classifier.")] = tensor
    if "Mixed_7c.branch1x1.conv.weight" in tensors:
        tensors["AuxLogits.conv0.conv.weight"] = torch.ones(128, 768, 1, 1)
        tensors["AuxLogits.fc.bias"] = torch.ones(1000)
    return tensors


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_torchvision_file_gives_the_same_output(name: str, old: bool, tmp_path: Path) -> None:
    source = _network(name)
    tensors = _torchvision(source, old=old)
    if old:
        tensors = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
        path = tmp_path / "weights.pth"
        torch.save(tensors, path)
    else:
        path = tmp_path / "weights.safetensors"
        save_file(tensors, path)
    model = _network(name, seed=2)
    report = initialise_from(model, load_weights_file(path), origin="weights")
    with torch.no_grad():
        assert torch.equal(model(_images()), source(_images()))
    assert report.adapted == ()
    assert all(n.endswith("num_batches_tracked") for n in report.kept)
    assert len(report.loaded) + len(report.kept) == len(model.state_dict())
    auxiliary = ("AuxLogits.conv0.conv.weight", "AuxLogits.fc.bias")
    assert report.ignored == (auxiliary if name == "inception_v3" else ())


def test_densenet_is_asked_for_under_torchvisions_published_names() -> None:
    tensors = _torchvision(_network("densenet121"))
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"features.conv0.weight", "classifier.weight", "classifier.bias"}
    norms = ["features.norm0", "features.norm5"]
    for block, count in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, count + 1):
            prefix = f"features.denseblock{block}.denselayer{layer}"
            names |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            norms += [f"{prefix}.norm1", f"{prefix}.norm2"]
        if block < 4:
            names |= {f"features.transition{block}.conv.weight"}
            norms += [f"features.transition{block}.norm"]
    assert set(tensors) == names | {f"{module}.{leaf}" for module in norms for leaf in norm}


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "densenet121"])
def test_group_norm_takes_the_affine_weights_and_leaves_the_statistics(name: str) -> None:
    source = _network(name)
    model = _network(name, seed=2, norm="group")
    report = initialise_from(model, _torchvision(source), origin="weights")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key]), key
    assert report.loaded == tuple(model.state_dict())
    assert not report.kept
    statistics = [n for n in report.ignored if not n.startswith("AuxLogits.")]
    assert all(re.search(r"running_mean|running_var|num_batches", n) for n in statistics)
    assert len(statistics) == len(source.state_dict()) - len(model.state_dict())


@pytest.mark.parametrize(
    ("name", "channels"), [("cnn", 2), ("cnn", 6), *((name, 1) for name in NAMES), ("resnet18", 4)]
)
def test_first_convolution_gives_the_same_for_equal_channels(name: str, channels: int) -> None:
    source = _network(name)
    model = _network(name, seed=2, channels=channels)
    report = initialise_from(model, _torchvision(source), origin="weights")
    (first,) = report.adapted
    weight, given = model.state_dict()[first], source.state_dict()[first]
    for channel in range(channels):
        torch.testing.assert_close(weight[:, channel], given.sum(dim=1) / channels)
    grey = _images(1)
    with torch.no_grad():
        ours = model(grey.expand(-1, channels, -1, -1))
        theirs = source(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_grey_weights_see_the_mean_of_the_colours(name: str) -> None:
    # A network trained on the phantom, which is grey, starts a study of colour images.
    source = _network(name, channels=1, norm="group")
    model = _network(name, seed=2, outputs=7, norm="group")
    report = initialise_from(model, source.state_dict(), origin="weights")
    assert len(report.adapted) == 1
    assert report.kept == tuple(n for n in model.state_dict() if n.startswith(model.head))  # type: ignore[arg-type]
    images = _images()
    with torch.no_grad():
        ours = model.grid(images)  # type: ignore[operator]
        theirs = source.grid(images.mean(dim=1, keepdim=True))  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_of_other_outputs_stays_as_initialised(name: str) -> None:
    source = _network(name, outputs=7)
    model = _network(name, seed=2, outputs=4)
    (head,) = model.head  # type: ignore[misc]
    names = (f"{head}.weight", f"{head}.bias")
    before = read_state(model, names)
    tensors = _torchvision(source)
    report = initialise_from(model, tensors, origin="weights")
    assert digest(read_state(model, names)) == digest(before)
    assert report.kept == names
    assert [n for n in report.ignored if "AuxLogits" not in n] == list(tensors)[-2:] or (
        name == "inception_v3" and {"fc.weight", "fc.bias"} <= set(report.ignored)
    )
    with torch.no_grad():
        assert torch.equal(
            model.grid(_images()),  # type: ignore[operator]
            source.grid(_images()),  # type: ignore[operator]
        )


def test_file_without_a_classifier_loads() -> None:
    tensors = _torchvision(_network("resnet18"))
    del tensors["fc.weight"], tensors["fc.bias"]
    report = initialise_from(_network("resnet18", seed=2), tensors, origin="weights")
    assert report.kept == ("fc.weight", "fc.bias")


def test_half_precision_becomes_the_models_type() -> None:
    source = _network("cnn")
    model = _network("cnn", seed=2)
    halves = {name: tensor.half() for name, tensor in source.state_dict().items()}
    initialise_from(model, halves, origin="weights")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, halves[name].float())


def _refusal(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """The lines of the error, having checked that nothing was changed."""
    before = digest(read_state(model))
    with pytest.raises(StudyError) as caught:
        initialise_from(model, tensors, origin="file.pth")
    assert digest(read_state(model)) == before
    lines = str(caught.value).splitlines()
    assert lines[0] == "file.pth does not fit the model:"
    assert "model.name" in lines[-1]
    return [line.strip() for line in lines[1:-1]]


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    tensors = _torchvision(_network("resnet18"))
    del tensors["layer1.0.bn1.weight"]
    tensors["layer2.0.conv1.weight"] = torch.ones(128, 64, 5, 5)
    tensors["layer9.bias"] = torch.ones(3)
    assert _refusal(_network("resnet18", seed=2), tensors) == [
        "layer2.0.conv1.weight: expected [128, 64, 3, 3], got [128, 64, 5, 5]",
        "layer9.bias: expected nothing of this name, got [3]",
        "layer1.0.bn1.weight: expected [64], got nothing",
    ]


def test_at_most_twenty_problems_are_listed() -> None:
    tensors = {f"other.{n}": torch.ones(2) for n in range(30)}
    lines = _refusal(_network("cnn"), tensors)
    assert lines[:20] == [f"other.{n}: expected nothing of this name, got [2]" for n in range(20)]
    # The remaining 10, and the 6 tensors of the model before its head (whose absence is no fault).
    assert lines[20:] == ["and 16 more"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        # Half a classifier.
        ({"fc.bias": None}, "fc.bias: expected [4], got nothing"),
        # Another number of outputs, and of features too: another network.
        ({"fc.weight": (7, 100), "fc.bias": (7,)}, "fc.weight: expected [4, 512], got [7, 100]"),
        ({"fc.weight": (7, 512)}, "fc.weight: expected [4, 512], got [7, 512]"),
        # Colour and grey are spread over other channels; two sequences have no such meaning.
        (
            {"conv1.weight": (64, 2, 7, 7)},
            "conv1.weight: expected [64, 3, 7, 7], got [64, 2, 7, 7]",
        ),
        (
            {"conv1.weight": (64, 3, 3, 3)},
            "conv1.weight: expected [64, 3, 7, 7], got [64, 3, 3, 3]",
        ),
        # BatchNorm needs statistics.
        ({"bn1.running_var": None}, "bn1.running_var: expected [64], got nothing"),
        # Another layer of three channels is no first convolution.
        (
            {"layer1.0.conv1.weight": (64, 3, 3, 3)},
            "layer1.0.conv1.weight: expected [64, 64, 3, 3], got [64, 3, 3, 3]",
        ),
        (
            {"AuxLogitsX.fc.bias": (1,)},
            "AuxLogitsX.fc.bias: expected nothing of this name, got [1]",
        ),
    ],
)
def test_each_fault_is_named(change: dict[str, tuple[int, ...] | None], problem: str) -> None:
    tensors = _torchvision(_network("resnet18"))
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.ones(shape)
    assert _refusal(_network("resnet18", seed=2), tensors)[0] == problem


def test_statistics_of_no_layer_of_the_model_are_refused() -> None:
    tensors = _torchvision(_network("resnet18")) | {"layer9.bn.running_mean": torch.ones(3)}
    lines = _refusal(_network("resnet18", seed=2, norm="group"), tensors)
    assert lines == ["layer9.bn.running_mean: expected nothing of this name, got [3]"]


def test_weights_for_images_do_not_load_into_a_network_for_volumes() -> None:
    model = build_classifier(
        "resnet18", spatial_dims=3, in_channels=3, num_outputs=4, image_size=40, norm="group"
    )
    lines = _refusal(model, _torchvision(_network("resnet18")))
    assert lines[0] == "conv1.weight: expected [64, 3, 7, 7, 7], got [64, 3, 7, 7]"
    assert len(lines) == 20


def _report_model(name: str) -> nn.Module:
    encoder = _network(name, seed=2, channels=1, norm="group")
    return ReportModel(encoder, num_words=9, embedding_size=3, hidden_size=4, attention_size=2)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_classifier_load_into_the_encoder_of_a_report_model(name: str) -> None:
    source = _network(name)
    model = _report_model(name)
    report = initialise_from(model, _torchvision(source), origin="weights")
    own = model.state_dict()
    encoder = [key for key in own if key.startswith("encoder.")]
    (first,) = report.adapted
    assert first.startswith("encoder.")
    assert sorted([*report.loaded, first]) == sorted(encoder)
    assert report.kept == tuple(key for key in own if key not in encoder)
    for key in report.loaded:
        assert torch.equal(own[key], source.state_dict()[key.removeprefix("encoder.")])
    assert any(re.match(r"(fc|classifier)\.", key) for key in report.ignored)


def test_weights_of_an_encoder_that_do_not_fit_are_listed_with_the_models_names() -> None:
    tensors = _torchvision(_network("resnet18"))
    del tensors["layer1.0.conv1.weight"]
    lines = _refusal(_report_model("resnet18"), tensors)
    assert lines == ["encoder.layer1.0.conv1.weight: expected [64, 64, 3, 3], got nothing"]


def test_weights_of_the_whole_model_go_before_those_of_an_encoder() -> None:
    source, model = _report_model("resnet18"), _report_model("resnet18")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    report = initialise_from(model, source.state_dict(), origin="weights")
    assert report.loaded == tuple(model.state_dict())
    assert digest(read_state(model)) == digest(read_state(source))


def test_weights_load_into_each_encoder_of_a_late_fusion() -> None:
    source = _network("resnet18")
    encoders = [_network("resnet18", seed=seed) for seed in (2, 3)]
    model = Fusion(encoders, num_tabular=0, num_outputs=2, hidden_size=3)
    report = initialise_from(model, _torchvision(source), origin="weights")
    assert report.kept == ("output.weight", "output.bias")
    assert report.ignored == ("fc.weight", "fc.bias")
    for key in report.loaded:
        _, _, theirs = key.removeprefix("encoders.").partition(".")
        assert torch.equal(model.state_dict()[key], source.state_dict()[theirs])
    assert len(report.loaded) == 2 * (len(source.state_dict()) - 2)


def test_unet_loads_by_exact_names() -> None:
    from monai.networks.nets import UNet

    def unet() -> nn.Module:
        network: nn.Module = UNet(2, 1, 2, (4, 8), (2,), norm="instance")
        return network

    source, model = unet(), unet()
    report = initialise_from(model, source.state_dict(), origin="weights")
    assert digest(read_state(model)) == digest(read_state(source))
    assert str(report) == f"weights: {len(source.state_dict())} tensors loaded"
    assert _refusal(model, dict(list(source.state_dict().items())[1:]))[0].endswith("got nothing")


def test_report_says_in_one_line_what_happened() -> None:
    source = _network("resnet18", outputs=7)
    model = _network("resnet18", channels=1, norm="group")
    report = initialise_from(model, _torchvision(source), origin="resnet18.pth")
    # 20 convolutions and 20 norms of two each; one convolution adapted.
    assert str(report) == (
        "resnet18.pth: 59 tensors loaded; adapted: conv1.weight; kept: fc.weight, fc.bias; "
        "ignored: bn1.running_mean, bn1.running_var, bn1.num_batches_tracked, "
        "layer1.0.bn1.running_mean and 58 more"
    )
