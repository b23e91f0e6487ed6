"""U-Nets: any size in, the same size out, nothing that mixes images, MONAI's names."""

import re

import numpy as np
import pytest
import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.errors import DataError, StudyError
from medfed.common.models.segmenters import Segmenter, build_segmenter

NAMES = ["unet", "attention_unet"]
WIDTHS = (4, 8, 12)
MULTIPLE = 4  # two halvings


def _segmenter(
    name: str = "unet",
    dims: int = 2,
    *,
    channels: int = 1,
    outputs: int = 2,
    widths: tuple[int, ...] = WIDTHS,
    norm: str = "group",
) -> Segmenter:
    torch.manual_seed(1)
    return build_segmenter(
        name,
        spatial_dims=dims,
        in_channels=channels,
        num_outputs=outputs,
        channels=widths,
        norm=norm,
    )


def _images(num: int, channels: int, *size: int) -> Tensor:
    return torch.randn(num, channels, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("channels", "size"),
    [
        (1, (16, 16)),
        (2, (37, 51)),
        (3, (1, 1)),
        (4, (3, 30)),
        (1, (8, 8, 8)),
        (2, (9, 5, 13)),
        (4, (1, 2, 1)),
    ],
)
def test_segmenter_gives_finite_logits_of_the_images_size(
    name: str, channels: int, size: tuple[int, ...]
) -> None:
    network = _segmenter(name, len(size), channels=channels, outputs=3).train()
    logits = network(_images(1, channels, *size))
    assert logits.shape == (1, 3, *size)
    logits.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_large_odd_image_keeps_its_size(name: str) -> None:
    network = _segmenter(name, widths=(2, 2, 2, 2, 2, 2))
    with torch.inference_mode():
        assert network(_images(1, 1, 999, 960)).shape == (1, 2, 999, 960)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("size", "fitting"), [((8, 12), (8, 12)), ((9, 11), (12, 12)), ((1, 8), (8, 8))]
)
def test_output_is_that_of_the_image_continued_by_its_edge(
    name: str, size: tuple[int, int], fitting: tuple[int, int]
) -> None:
    network = _segmenter(name)
    images = _images(2, 1, *size)
    rows, columns = (after - before for before, after in zip(size, fitting, strict=True))
    continued = np.pad(images.numpy(), ((0, 0), (0, 0), (0, rows), (0, columns)), mode="edge")
    with torch.no_grad():
        expected = network.output(network.network(torch.from_numpy(continued)))
        torch.testing.assert_close(network(images), expected[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(13, 9), (5, 8, 6)])
def test_no_image_sees_another_in_training(name: str, size: tuple[int, ...]) -> None:
    network = _segmenter(name, len(size)).train()
    images = _images(2, 1, *size)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        other = network(torch.stack([images[0], 100 * images[1] + 7]))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0], other[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", [2, 3])
def test_norm_is_what_the_study_says_everywhere(name: str, dims: int) -> None:
    widths = (2, 6, 13, 32)
    group = _segmenter(name, dims, widths=widths)
    kinds = {type(module).__name__ for module in group.modules()}
    assert "GroupNorm" in kinds
    assert not [kind for kind in kinds if kind.startswith(("Batch", "Instance", "Dropout"))]
    groups = {m.num_channels: m.num_groups for m in group.modules() if isinstance(m, nn.GroupNorm)}
    # The largest divisors up to eight; attention has half the widths, and maps of one channel.
    expected = {1: 1, 2: 2, 3: 3, 6: 6, 13: 1, 32: 8}
    assert groups == {channels: expected[channels] for channels in groups}
    assert {2, 6, 13, 32} <= set(groups)
    batch = {type(m).__name__ for m in _segmenter(name, dims, norm="batch").modules()}
    assert f"BatchNorm{dims}d" in batch
    assert not [kind for kind in batch if kind.startswith(("Group", "Instance", "Dropout"))]


def _own_names(network: Segmenter) -> set[str]:
    return {name.removeprefix("network.") for name, _ in network.named_parameters()}


def test_unet_has_monais_parameter_names() -> None:
    monai = UNet(2, 1, 4, WIDTHS, (2, 2), num_res_units=2, act="RELU", norm="batch", bias=False)
    names = {name for name, _ in monai.named_parameters()}
    assert _own_names(_segmenter("unet")) == names | {"output.weight", "output.bias"}


def test_attention_unet_has_monais_parameter_names() -> None:
    monai = AttentionUnet(2, 1, 2, WIDTHS, (2, 2))
    # MONAI's last layer is ours, and its merge layers have norms without parameters.
    names = {name for name, _ in monai.named_parameters() if not name.startswith("model.2.")}
    merges = [name for name, _ in monai.named_modules() if name.endswith("merge.adn.N")]
    assert len(merges) == 2
    names |= {f"{merge}.{leaf}" for merge in merges for leaf in ("weight", "bias")}
    assert _own_names(_segmenter("attention_unet")) == names | {"output.weight", "output.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_head_is_the_last_layer(name: str) -> None:
    network = _segmenter(name, outputs=3)
    (head,) = network.head
    layer = network.get_submodule(head)
    assert isinstance(layer, nn.Conv2d)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(3.0))  # type: ignore[union-attr]
        logits = network(_images(2, 1, 6, 7))
    torch.testing.assert_close(logits, torch.arange(3.0)[:, None, None].expand(2, 3, 6, 7))


def test_attention_starts_out_open() -> None:
    network = _segmenter("attention_unet", widths=(8, 16))
    gates: list[Tensor] = []
    psi = network.get_submodule("network.model.1.attention.psi")
    psi.register_forward_hook(lambda module, inputs, output: gates.append(output))
    with torch.no_grad():
        network(_images(4, 1, 16, 16))
    # The logits are normalised to mean 2 and standard deviation 1.
    logits = torch.logit(gates[0].double())
    assert logits.mean().item() == pytest.approx(2, abs=0.05)
    assert logits.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_segmenter_learns_where_something_is_and_that_nothing_is(name: str) -> None:
    """Images without the structure are why the output maps must not be normalised."""
    images = 0.1 * _images(4, 1, 19, 16)
    masks = torch.zeros_like(images)
    masks[0, 0, 2:9, 3:9] = 1
    masks[1, 0, 10:15, 7:14] = 1
    images = images + masks
    network = _segmenter(name, outputs=1, widths=(8, 16)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(images), masks).backward()
        optimizer.step()
    wrong = (network(images) > 0) != masks.bool()
    assert wrong.flatten(1).sum(dim=1).tolist() == [0, 0, 0, 0]


def test_weights_depend_on_torchs_random_state_only() -> None:
    one, two = _segmenter().state_dict(), _segmenter().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vnet"}, r"Expected a network of unet, attention_unet, got 'vnet'"),
        ({"norm": "layer"}, r'Expected model.norm "group" or "batch", got \'layer\''),
        ({"dims": 1}, "Expected data.dimensions 2 or 3, got 1"),
        ({"channels": 0}, "at least one input channel and one output, got 0 and 2"),
        ({"outputs": 0}, "at least one input channel and one output, got 1 and 0"),
        ({"widths": (8,)}, r"two or more model.widths, each >= 1, got \[8\]"),
        ({"name": "attention_unet", "widths": (1, 8)}, r"each >= 2, got \[1, 8\]"),
    ],
)
def test_build_refuses_what_no_network_supports(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        _segmenter(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 8), (1, 1, 8), (1, 3, 8, 8)])
def test_images_of_other_dimensions_or_channels_are_refused(shape: tuple[int, ...]) -> None:
    message = rf"\[B, 1, \*S\] with 2 sides S, got shape {re.escape(str(list(shape)))}.*Set data\."
    with pytest.raises(DataError, match=message):
        _segmenter()(torch.zeros(shape))
