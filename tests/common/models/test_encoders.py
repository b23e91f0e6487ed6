"""What a larger model keeps of a classification network."""

import pytest
import torch
from torch import nn

from medfed.common.models.classifiers import build_classifier
from medfed.common.models.encoders import remove_classifier
from medfed.common.models.pretrained import initialise_from
from medfed.common.models.report_lstm import ReportModel

pytestmark = pytest.mark.usefixtures("small_vgg")

SIDES = {
    "cnn": 12,
    "vgg16": 32,
    "resnet18": 32,
    "resnet50": 32,
    "inception_v3": 75,
    "densenet121": 32,
}


def _classifier(name: str) -> nn.Module:
    torch.manual_seed(2)
    return build_classifier(
        name, spatial_dims=2, in_channels=1, num_outputs=3, image_size=SIDES[name], norm="group"
    )


@pytest.mark.parametrize("name", SIDES)
def test_encoder_keeps_its_grid_and_no_weight_that_the_grid_does_not_need(name: str) -> None:
    network = _classifier(name)
    images = torch.randn(2, 1, SIDES[name], SIDES[name])
    with torch.no_grad():
        before = network.grid(images)  # type: ignore[operator]
    remove_classifier(network)
    after = network.grid(images)  # type: ignore[operator]
    assert torch.equal(after, before)
    after.sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["cnn", "vgg16", "resnet18"])
def test_classifiers_weights_load_into_a_report_model(name: str) -> None:
    source = _classifier(name)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    model = ReportModel(
        _classifier(name), num_words=6, embedding_size=2, hidden_size=2, attention_size=2
    )
    weights = source.state_dict()
    report = initialise_from(model, weights, origin="a file")
    assert all(name.startswith("encoder.") for name in report.loaded)
    assert set(report.loaded) == {n for n in model.state_dict() if n.startswith("encoder.")}
    for name in report.loaded:
        assert torch.equal(model.state_dict()[name], weights[name.removeprefix("encoder.")])
