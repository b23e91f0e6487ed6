"""Stages are the network in pieces: the same bits, every weight once, three parts that train."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from medfed.common.errors import StudyError
from medfed.common.models import build_model, check_model, cut_shapes, trained_names
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.models.stages import cut, stages_of
from medfed.common.study import StudyConfig
from medfed.common.study.model import CLASSIFIERS

SIZES = {"inception_v3": 75, "densenet121": 32, "vgg16": 32, "resnet50": 33}


def make_study(name: str = "cnn", stages: int = 1, **model: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "stages"},
            "task": {"classes": ["a", "b", "c"]},
            "data": {"image_size": SIZES.get(name, 16), "channels": 2},
            "model": {"name": name, **model},
            "training": {"local_steps": 1},
            "federation": {"algorithm": "split", "front_stages": stages},
            "privacy": {"unit": "none"},
        }
    )


def images_of(study: StudyConfig) -> torch.Tensor:
    side = study.data.image_size
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 2, *[side] * study.data.dimensions), generator=generator)


def assert_same(model: nn.Module, study: StudyConfig) -> None:
    """Outputs, gradients and statistics of the pieces are those of the whole."""
    pieces = copy.deepcopy(model).train()
    outputs = model.train()(images_of(study))
    outputs.square().sum().backward()
    features = images_of(study)
    entered, left = [], []
    for stage in stages_of(pieces):
        # A leaf of its own, as what came in a message is.
        features = features.detach().requires_grad_()
        entered.append(features)
        features = stage.run(features)
        left.append(features)
    assert torch.equal(features, outputs)
    gradient = None
    for came, went in zip(reversed(entered), reversed(left), strict=True):
        went.square().sum().backward() if gradient is None else went.backward(gradient)
        gradient = came.grad
    for (name, whole), cut_off in zip(model.named_parameters(), pieces.parameters(), strict=True):
        assert whole.grad is not None, name
        assert torch.equal(whole.grad, cut_off.grad), name
    for whole, cut_off in zip(model.buffers(), pieces.buffers(), strict=True):
        assert torch.equal(whole, cut_off)


@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        "resnet18",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in CLASSIFIERS
            if n not in ("cnn", "resnet18")
        ),
    ],
)
def test_stages_in_turn_are_the_network_to_the_bit(name: str) -> None:
    study = make_study(name)
    model = build_model(study, 3)
    stages = stages_of(model)
    owned = [n for stage in stages for n in trained_names(model)
             if n.startswith(tuple(f"{module}." for module in stage.modules))]  # fmt: skip
    assert sorted(owned) == sorted(trained_names(model))
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p]
    lay_out_for_cpu(model)
    assert_same(model, study)


@pytest.mark.parametrize("model", [{"norm": "batch"}, {"weight_standardisation": True}])
def test_stages_keep_what_is_put_on_a_network(model: dict[str, Any]) -> None:
    study = make_study("resnet18", **model).model_copy()
    study = study.model_copy(update={"data": study.data.model_copy(update={"image_size": 33})})
    assert_same(build_model(study, 3), study)


def test_volumes_can_be_cut() -> None:
    study = make_study("cnn")
    data = study.data.model_copy(update={"dimensions": 3})
    study = study.model_copy(update={"data": data})
    model = build_model(study, 3)
    assert_same(model, study)
    assert cut_shapes(study, 3) == ((32, 7, 7, 7), (128,))


@pytest.mark.parametrize(
    ("name", "depth", "shapes"),
    [
        ("cnn", 1, ((32, 7, 7), (128,))),
        ("cnn", 2, ((64, 2, 2), (128,))),
        ("resnet18", 1, ((64, 4, 4), (512,))),
        ("resnet18", 3, ((128, 2, 2), (512,))),
    ],
)
def test_parts_are_front_middle_and_classifier(
    name: str, depth: int, shapes: tuple[tuple[int, ...], ...]
) -> None:
    study = make_study(name, depth)
    model = build_model(study, 3)
    front, middle, back = cut(model, study)
    assert (*front.names, *middle.names, *back.names) == trained_names(model)
    assert set(back.names) == {f"{model.head[0]}.weight", f"{model.head[0]}.bias"}
    features = front(images_of(study))
    assert (features.shape[1:], middle(features).shape[1:]) == shapes
    assert cut_shapes(study, 3) == shapes


def test_cut_that_leaves_a_part_empty_is_refused() -> None:
    check_model(make_study("cnn", 2))
    with pytest.raises(StudyError, match=r"front_stages = 3 leaves nothing of the cnn.*at most 2"):
        check_model(make_study("cnn", 3))
    for freeze, part in (
        (["features.*"], "front"),
        ("backbone", "front"),
        (["classifier.3*"], "back"),
    ):
        with pytest.raises(StudyError, match=f"{part} in which nothing trains"):
            check_model(make_study("cnn", freeze=freeze))
    check_model(make_study("cnn", freeze=["features.0.bias"]))
