"""Fusion of views and tabular values: a plain loop, and a missing view has no influence at all."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.common.errors import DataError, StudyError
from medfed.common.models.classifiers import build_classifier
from medfed.common.models.fusion import Fusion

SIDE = 10
NUM_TABULAR = 3
OUTPUTS = 4


def _fusion(
    num_encoders: int, channels: int, *, dims: int = 2, num_tabular: int = NUM_TABULAR
) -> Fusion:
    torch.manual_seed(8)
    encoders = [
        build_classifier(
            "cnn",
            spatial_dims=dims,
            in_channels=channels,
            num_outputs=1,
            image_size=SIDE,
            norm="group",
        )
        for _ in range(num_encoders)
    ]
    return Fusion(encoders, num_tabular=num_tabular, num_outputs=OUTPUTS, hidden_size=5)


def _inputs(
    present: list[list[int]], channels: int, *, dims: int = 2, num_tabular: int = NUM_TABULAR
) -> tuple[Tensor, Tensor, Tensor]:
    """Images as noise, zeros where a view is missing."""
    generator = torch.Generator().manual_seed(9)
    shown = torch.tensor(present, dtype=torch.float32)
    num, views = shown.shape
    images = torch.randn(num, views, channels, *[SIDE] * dims, generator=generator)
    images *= shown.view(num, views, 1, *[1] * dims)
    return images.flatten(1, 2), shown, torch.randn(num, num_tabular, generator=generator)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("late", [True, False])
def test_fusion_gives_logits(late: bool, channels: int, dims: int) -> None:
    fusion = _fusion(2, channels, dims=dims) if late else _fusion(1, 2 * channels, dims=dims)
    logits = fusion(*_inputs([[1, 1], [1, 0], [0, 1]], channels, dims=dims))
    assert logits.shape == (3, OUTPUTS)
    logits.square().sum().backward()
    assert [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_late_fusion_averages_the_views_that_are_there() -> None:
    channels, patterns = 2, [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 1, 0]]
    fusion = _fusion(3, channels)
    images, present, tabular = _inputs(patterns, channels)
    logits = fusion(images, present, tabular)
    for row, pattern in enumerate(patterns):
        pooled = [
            encoder.grid(images[row : row + 1, channels * view : channels * (view + 1)])  # type: ignore[operator]
            .flatten(2)
            .mean(dim=2)
            for view, encoder in enumerate(fusion.encoders)
            if pattern[view]
        ]
        assert fusion.tabular is not None
        table = fusion.tabular(tabular[row : row + 1])
        features = torch.cat([torch.stack(pooled).mean(dim=0), table], dim=1)
        torch.testing.assert_close(logits[row : row + 1], fusion.output(features))


def test_early_fusion_is_one_encoder_on_all_channels() -> None:
    fusion = _fusion(1, 4)
    images, present, tabular = _inputs([[1, 1], [1, 0]], 2)
    pooled = fusion.grid(images).flatten(2).mean(dim=2)
    assert fusion.tabular is not None
    expected = fusion.output(torch.cat([pooled, fusion.tabular(tabular)], dim=1))
    torch.testing.assert_close(fusion(images, present, tabular), expected)


def test_single_view_without_a_table_is_the_encoder_and_the_head() -> None:
    fusion = _fusion(1, 3, num_tabular=0)
    images, present, tabular = _inputs([[1], [1]], 3, num_tabular=0)
    assert tabular.shape == (2, 0)
    expected = fusion.output(fusion.grid(images).flatten(2).mean(dim=2))
    torch.testing.assert_close(fusion(images, present, tabular), expected)


def _gradients(fusion: Fusion, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    images, present, tabular = inputs
    images = images.clone().requires_grad_()
    fusion.zero_grad()
    loss = F.cross_entropy(fusion(images, present, tabular), torch.tensor([1, 3]))
    loss.backward()
    found = {name: p.grad for name, p in fusion.named_parameters()}
    found["images"] = images.grad
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_what_stands_in_a_missing_views_place_changes_nothing(late: bool, garbage: float) -> None:
    fusion = _fusion(2, 2) if late else _fusion(1, 4)
    images, present, tabular = _inputs([[1, 0], [0, 1]], 2)
    loud = images.clone()
    loud[0, 2:] = garbage
    loud[1, :2] = garbage
    with torch.no_grad():
        assert torch.equal(fusion(loud, present, tabular), fusion(images, present, tabular))
    quiet, other = (_gradients(fusion, (shown, present, tabular)) for shown in (images, loud))
    assert quiet.keys() == other.keys()
    assert all(torch.equal(quiet[name], other[name]) for name in quiet)
    assert not other["images"][0, 2:].any()
    assert not other["images"][1, :2].any()
    assert other["images"][0, :2].any()


def test_encoder_of_a_view_that_nobody_has_gets_no_gradient() -> None:
    fusion = _fusion(2, 2)
    gradients = _gradients(fusion, _inputs([[1, 0], [1, 0]], 2))
    assert gradients["encoders.0.features.0.weight"].any()
    assert not any(g.any() for name, g in gradients.items() if name.startswith("encoders.1."))


@pytest.mark.parametrize("late", [True, False])
def test_without_any_view_the_table_alone_decides(late: bool) -> None:
    fusion = _fusion(2, 2) if late else _fusion(1, 4)
    images, present, tabular = _inputs([[0, 0], [1, 1]], 2)
    logits = fusion(images, present, tabular)
    assert fusion.tabular is not None
    nothing = torch.zeros(1, fusion.num_features)
    expected = fusion.output(torch.cat([nothing, fusion.tabular(tabular[:1])], dim=1))
    torch.testing.assert_close(logits[:1], expected)
    gradients = _gradients(fusion, (images, present, tabular))
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_no_examination_sees_another() -> None:
    fusion = _fusion(2, 1).train()
    images, present, tabular = _inputs([[1, 1], [1, 0]], 1)
    with torch.no_grad():
        together = fusion(images, present, tabular)
        alone = fusion(images[:1], present[:1], tabular[:1])
        other = fusion(torch.stack([images[0], 9 * images[1] + 1]), present, 5 * tabular)
    torch.testing.assert_close(together[:1], alone)
    assert not torch.allclose(together[1], other[1])


def test_head_is_the_last_layer_and_names_are_those_of_the_encoders() -> None:
    fusion = _fusion(2, 1)
    (head,) = fusion.head
    assert isinstance(fusion.get_submodule(head), nn.Linear)
    encoder = [f"features.{layer}.{leaf}" for layer in (0, 3) for leaf in ("weight", "bias")]
    assert [name for name, _ in fusion.named_parameters()] == [
        *(f"encoders.{view}.{name}" for view in range(2) for name in encoder),
        "tabular.0.weight",
        "tabular.0.bias",
        "output.weight",
        "output.bias",
    ]


def test_grid_of_several_views_is_refused() -> None:
    with pytest.raises(DataError, match=r"got 2 encoders.*encoders\[view\].grid"):
        _fusion(2, 1).grid(torch.zeros(1, 2, SIDE, SIDE))


def test_encoders_of_different_networks_are_refused() -> None:
    one, other = _fusion(1, 1).encoders[0], _fusion(1, 1).encoders[0]
    other.num_features = 32  # type: ignore[assignment]
    for encoders in ([one, other], []):
        with pytest.raises(StudyError, match="as many features"):
            Fusion(encoders, num_tabular=0, num_outputs=2, hidden_size=1)


@pytest.mark.parametrize(
    ("num_encoders", "channels", "views"), [(2, 4, 3), (2, 4, 1), (1, 4, 3), (1, 4, 0)]
)
def test_wrong_number_of_views_is_refused(num_encoders: int, channels: int, views: int) -> None:
    fusion = _fusion(num_encoders, channels // num_encoders)
    images, present = torch.zeros(1, channels, SIDE, SIDE), torch.ones(1, views)
    with pytest.raises(DataError, match=rf"present of {views} views and images of {channels} ch"):
        fusion(images, present, torch.zeros(1, NUM_TABULAR))
