"""Freezing: what trains, what moves, what is sent and what is hashed."""

import pytest
import torch
from torch import nn

from medfed.common.errors import StudyError
from medfed.common.models.classifiers import build_classifier
from medfed.common.models.freezing import (
    freeze,
    frozen_state_digest,
    set_training_mode,
    trained_names,
)
from medfed.common.state_dicts import digest, read_state


class Small(nn.Module):
    """A backbone with BatchNorm, and a head."""

    head = ("classifier.1",)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.body(self.stem(images)))
        return logits


def _trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HEAD = {"classifier.1.weight", "classifier.1.bias"}
BODY = {"body.0.weight", "body.1.weight", "body.1.bias"}
STEM = {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}


@pytest.mark.parametrize(
    ("what", "trainable"),
    [
        ("none", STEM | BODY | HEAD),
        ("backbone", HEAD),
        (
            "weights",
            HEAD | {"stem.0.bias", "stem.1.weight", "stem.1.bias", *BODY} - {"body.0.weight"},
        ),
        ("stem.*", BODY | HEAD),
        (("stem.*", "body.0.*"), HEAD | {"body.1.weight", "body.1.bias"}),
        (("stem.0.weight",), STEM | BODY | HEAD - {"stem.0.weight"}),
        ("*.bias", {name for name in STEM | BODY | HEAD if not name.endswith("bias")}),
        ("s?em.[01].bias", STEM | BODY | HEAD),
    ],
)
def test_freeze_leaves_the_rest_trainable(what: str | tuple[str, ...], trainable: set[str]) -> None:
    model = Small()
    freeze(model, what)
    gone = {
        ("stem.0.weight",): {"stem.0.weight"},
        "s?em.[01].bias": {"stem.0.bias", "stem.1.bias"},
    }.get(what, set())
    assert _trainable(model) == trainable - gone


def test_freeze_none_undoes_an_earlier_freeze() -> None:
    model = Small()
    freeze(model, "backbone")
    freeze(model, "none")
    assert _trainable(model) == STEM | BODY | HEAD


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("stm.0.weight", ["'stm.0.weight'", "matches none", "nearest names are stem.0.weight"]),
        (("stem.*", "encoder.*"), ["'encoder.*'", "matches none"]),
        # Names are compared as they are written.
        ("Stem.*", ["'Stem.*'", "stem."]),
        ("*", ["leaves nothing to train", "classifier.1.weight"]),
        (("stem.*", "body.*", "classifier.*"), ["leaves nothing to train", "backbone"]),
    ],
)
def test_freeze_refuses_with_the_nearest_names(
    what: str | tuple[str, ...], parts: list[str]
) -> None:
    model = Small()
    with pytest.raises(StudyError) as caught:
        freeze(model, what)
    for part in parts:
        assert part in str(caught.value)
    assert _trainable(model) == STEM | BODY | HEAD


def test_freeze_backbone_needs_a_head() -> None:
    with pytest.raises(StudyError, match=r"Sequential, which has none.*0\.weight"):
        freeze(nn.Sequential(nn.Linear(2, 2)), "backbone")


def test_freeze_weights_needs_a_head_and_biases() -> None:
    with pytest.raises(StudyError, match=r'"weights".*Sequential, which has none'):
        freeze(nn.Sequential(nn.Linear(2, 2)), "weights")
    model = Small()
    model.stem = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU())
    model.body = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    with pytest.raises(StudyError, match=r"expected biases or normalisations.*Small.*backbone"):
        freeze(model, "weights")


@pytest.mark.parametrize(
    "name", ["cnn", "vgg16", "resnet18", "resnet50", "inception_v3", "densenet121"]
)
@pytest.mark.usefixtures("small_vgg")
def test_freeze_weights_leaves_vectors_and_the_last_layer_of_every_network(name: str) -> None:
    model = build_classifier(name, in_channels=1, num_outputs=4, image_size=75, norm="group")
    freeze(model, "weights")
    (head,) = model.head  # type: ignore[misc]
    for parameter_name, parameter in model.named_parameters():
        in_head = parameter_name.startswith(f"{head}.")
        # Outside the last layer biases, scales and shifts are all that is a vector.
        assert parameter.requires_grad == (in_head or parameter.dim() == 1), parameter_name


@pytest.mark.parametrize(
    "name", ["cnn", "vgg16", "resnet18", "resnet50", "inception_v3", "densenet121"]
)
@pytest.mark.usefixtures("small_vgg")
def test_freeze_backbone_leaves_the_last_layer_of_every_network(name: str) -> None:
    model = build_classifier(name, in_channels=1, num_outputs=4, image_size=75, norm="group")
    freeze(model, "backbone")
    (head,) = model.head  # type: ignore[misc]
    assert trained_names(model) == (f"{head}.weight", f"{head}.bias")
    assert model.get_parameter(f"{head}.bias").shape == (4,)


STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize(
    ("what", "moving"),
    [
        ("none", ["stem.1", "body.1"]),
        ("backbone", []),
        ("stem.*", ["body.1"]),
        # One of its own parameters trains: so do its statistics.
        (("stem.*", "body.1.weight"), ["body.1"]),
        (("stem.*", "body.1.*"), []),
    ],
)
def test_trained_names_are_exactly_what_training_changes(
    what: str | tuple[str, ...], moving: list[str]
) -> None:
    torch.manual_seed(0)
    model = Small()
    freeze(model, what)
    set_training_mode(model)
    names = trained_names(model)
    expected = _trainable(model) | {f"{m}.{leaf}" for m in moving for leaf in STATISTICS}
    assert set(names) == expected
    assert list(names) == [name for name in model.state_dict() if name in expected]

    before, frozen = read_state(model), frozen_state_digest(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    model(torch.randn(5, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    after = read_state(model)
    changed = {name for name, old in before.items() if old.tobytes() != after[name].tobytes()}
    assert changed == set(names)
    assert frozen_state_digest(model) == frozen


def test_frozen_state_digest_sees_the_rest_and_nothing_else() -> None:
    model = Small()
    freeze(model, "backbone")
    rest = [name for name in model.state_dict() if name not in HEAD]
    one = frozen_state_digest(model)
    assert one == digest(read_state(model, rest))
    with torch.no_grad():
        model.get_parameter("classifier.1.bias").add_(1)
    assert frozen_state_digest(model) == one
    model.get_buffer("body.1.running_mean").add_(1)
    assert frozen_state_digest(model) != one


def test_frozen_state_digest_of_nothing_frozen_is_that_of_nothing() -> None:
    model = Small()
    assert frozen_state_digest(model) == digest({})
    with torch.no_grad():
        model.get_parameter("stem.0.bias").add_(1)
    assert frozen_state_digest(model) == digest({})


def test_set_training_mode_keeps_frozen_modules_in_evaluation_mode() -> None:
    model = Small().eval()
    freeze(model, "stem.*")
    set_training_mode(model)
    evaluating = {name for name, module in model.named_modules() if not module.training}
    assert evaluating == {"stem.0", "stem.1"}


def test_set_training_mode_keeps_a_child_that_trains_within_a_frozen_parent() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.norm = nn.BatchNorm1d(2)

    model = Parent()
    freeze(model, "scale")
    set_training_mode(model)
    assert not model.training
    assert model.norm.training
