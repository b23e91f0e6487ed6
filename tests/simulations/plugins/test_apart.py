"""What mixes patients is found on made-up images, and what does not passes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfed.common.errors import StudyError
from medfed.common.models import build_model
from medfed.common.plugins.apart import check_images_apart
from medfed.common.state_dicts import digest, read_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import Classification, make_task


def study(**sections: Any) -> StudyConfig:
    table: dict[str, Any] = {
        "study": {"name": "test"},
        "task": {"classes": ["a", "b", "c"]},
        "data": {"image_size": 16},
        "training": {"local_steps": 1},
    }
    return StudyConfig.model_validate({**table, **sections})


class Net(nn.Module):
    """Logits of 16 x 16 pixels, after what a test does to the features [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(256, 8), nn.Linear(8, 3)

    def between(self, features_BF: Tensor) -> Tensor:
        return features_BF

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.between(self.first(images.flatten(1)).tanh()))
        return logits


class Centred(Net):
    def between(self, features_BF: Tensor) -> Tensor:
        return features_BF - features_BF.mean(dim=0)


class CentredInSilence(Net):
    """The same values in any company, and other gradients."""

    def between(self, features_BF: Tensor) -> Tensor:
        mean = features_BF.mean(dim=0)
        return features_BF + mean - mean.detach()


class Dropping(Net):
    def between(self, features_BF: Tensor) -> Tensor:
        return F.dropout(features_BF, 0.5, training=self.training)


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def between(self, features_BF: Tensor) -> Tensor:
        self.seen += 1
        return features_BF


class Deciding(Net):
    def between(self, features_BF: Tensor) -> Tensor:
        return features_BF if features_BF[0].sum().item() > 0 else -features_BF


class Normed(Net):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def between(self, features_BF: Tensor) -> Tensor:
        normed: Tensor = self.norm(features_BF)
        return normed


BAD = {
    "batch norm": (lambda: Normed(nn.BatchNorm1d(8)), "BatchNorm1d at norm"),
    "batch norm of its own": (
        lambda: Normed(nn.BatchNorm1d(8, affine=False, track_running_stats=False)),
        "BatchNorm1d at norm",
    ),
    "mean of the batch": (Centred, "mixes patients"),
    "gradient of the batch": (CentredInSilence, "mixes patients"),
    "dropout": (Dropping, "dropout|random"),
    "counter": (Counting, "buffer"),
    "branch": (Deciding, "patient by patient"),
}


@pytest.mark.parametrize("name", BAD)
def test_network_that_no_bound_holds_for_is_refused(name: str) -> None:
    make, said = BAD[name]
    torch.manual_seed(0)
    with pytest.raises(StudyError, match=said) as caught:
        check_images_apart(make(), Classification(study()), study())
    assert 'privacy.unit = "none"' in str(caught.value)


class Large(Net):
    def between(self, features_BF: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")


def test_memory_that_runs_out_is_no_fault_of_the_plug_in() -> None:
    asked = study()
    with pytest.raises(torch.OutOfMemoryError):
        check_images_apart(Large(), make_task(asked), asked)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm(8)], ids=["group", "layer"])
def test_network_that_sees_one_image_at_a_time_passes_unchanged(norm: nn.Module) -> None:
    model = Normed(norm)
    before = digest(read_state(model))
    check_images_apart(model, Classification(study()), study())
    assert digest(read_state(model)) == before


class MeanOfBatch(Classification):
    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().loss_per_image(outputs, targets)
        return losses / len(losses)


class OneNumber(Classification):
    def loss_per_image(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss_per_image(outputs, targets).mean()


@pytest.mark.parametrize(
    ("task", "said"),
    [(MeanOfBatch, "mixes patients"), (OneNumber, "one loss an image")],
    ids=["share", "one-number"],
)
def test_loss_that_couples_images_is_refused(task: type[Classification], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        check_images_apart(Net(), task(study()), study())


OWN: dict[str, dict[str, Any]] = {
    "classes": {},
    "findings": {"task": {"classes": ["a", "b"], "mode": "multilabel"}},
    "grades": {"task": {"classes": ["a", "b", "c"], "mode": "ordinal"}},
    "structures": {
        "task": {"type": "segmentation", "classes": ["a"]},
        "model": {"name": "unet", "widths": [4, 8]},
    },
    "regions in volumes": {
        "task": {"type": "segmentation", "classes": ["a", "b"], "mode": "multilabel"},
        "model": {"name": "unet", "widths": [4, 8]},
        "data": {"image_size": 16, "dimensions": 3, "channels": 2},
    },
    "columns": {
        "data": {
            "image_size": 16,
            "views": ["l", "r"],
            "tabular": {"age": {"mean": 50.0, "std": 10.0}},
        },
        "model": {"fusion": "late"},
    },
}


@pytest.mark.parametrize("name", OWN)
def test_medfeds_own_tasks_and_networks_pass_the_same_trial(name: str) -> None:
    own = study(**OWN[name])
    task = make_task(own)
    check_images_apart(build_model(own, task.num_outputs), task, own)
