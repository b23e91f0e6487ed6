"""Whether one image's gradient depends on the other images of its batch.

Differential privacy bounds what one patient adds to a sum. A normalisation over the batch, or a
loss that divides by something of the batch, lets a patient change what the others add, and the
bound fails without a sound. medfed's own networks and losses are built and tested not to; a
plug-in's is tried on made-up images before it sees any patient's.

A test, no proof: code that means harm can tell the trial from the real thing. Whoever installs a
plug-in vouches for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medfed.common.errors import StudyError
from medfed.common.models.freezing import set_training_mode
from medfed.common.seeding import numpy_rng, torch_rng
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import Examples, Task

_TOLERANCE = 1e-3
_WAY_OUT = 'Have it mended, or set privacy.unit = "none" for a run without privacy.'


def check_images_apart(model: nn.Module, task: Task, study: StudyConfig) -> None:
    """Refuse a network or loss that mixes images, draws at random, or keeps something of them.

    Leaves the network's weights as they are.

    Args:
        model: As built for `study`.
        task: The study's task.
        study: With privacy.

    Raises:
        StudyError: Says which plug-in, what it does, and the way out.
    """
    _check_layers(model, study)
    inputs, targets = made_up(task, study, next(model.parameters()).device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    set_training_mode(model)
    first = slice(0, 1)
    with told(study):
        alone, again, *company = [
            _loss_and_gradient(model, task, _cut(inputs, rows), targets[rows])
            for rows in (first, first, [0, 1, 2], [0, 3, 4])
        ]
    if any(not torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers()):
        raise refused(study, "changes a buffer in training, which would leave without noise")
    if not _close(alone, again):
        raise refused(study, "gives the same image another gradient each time (dropout?)")
    if not all(_close(alone, one) for one in company):
        raise refused(study, "gives an image another gradient in other company: it mixes patients")
    with told(study):
        mapped = _mapped_gradient(model, task, _cut(inputs, first), targets[first])
    if not _close(alone[1:], mapped):
        raise refused(study, "gives another gradient under torch.func.vmap than image by image")


def draws_at_random(model: nn.Module, task: Task, study: StudyConfig) -> bool:
    """Whether training draws from torch's own random state, as dropout does.

    For a thread that has that state to itself. Leaves weights and buffers as they are.
    """
    device = next(model.parameters()).device
    inputs, targets = made_up(task, study, device, 2)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    set_training_mode(model)
    before = _random_state(device)
    with torch.no_grad():
        task.loss_per_image(model(*inputs), targets)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return not torch.equal(before, _random_state(device))


def _random_state(device: torch.device) -> Tensor:
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return torch.cat([torch.get_rng_state(), *on_gpu])


@contextmanager
def told(study: StudyConfig) -> Iterator[None]:
    """Turn whatever goes wrong while a plug-in is tried into a refusal."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # no fault of the plug-in's
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise refused(study, f"cannot be differentiated patient by patient ({why})") from error


def _check_layers(model: nn.Module, study: StudyConfig) -> None:
    for name, module in model.named_modules():
        keeps = isinstance(module, _InstanceNorm) and module.track_running_stats
        if isinstance(module, _BatchNorm) or keeps:
            raise refused(
                study, f"has {type(module).__name__} at {name}, which mixes patients: use GroupNorm"
            )


def refused(study: StudyConfig, what: str) -> StudyError:
    """Return the error that a study's plug-ins do `what`, which cannot be under privacy."""
    return StudyError(
        f"{plugins_of(study)} {what}. That cannot be under privacy.unit = "
        f'"{study.privacy.unit}". {_WAY_OUT}'
    )


def plugins_of(study: StudyConfig) -> str:
    """Return the plug-ins among a study's model and task, with their packages."""
    plugins = study.plugins
    whose = [f"model.name = {study.model.name} ({plugins.model})"] if study.model.is_plugin else []
    if study.task.plugin:
        whose.append(f"task.plugin = {study.task.plugin} ({plugins.task})")
    return " with ".join(whose)


def _loss_and_gradient(
    model: nn.Module, task: Task, inputs: tuple[Tensor, ...], targets: Tensor
) -> list[Tensor]:
    """Return the first image's loss and its gradient for each parameter that trains."""
    losses_B = task.loss_per_image(model(*inputs), targets)
    if losses_B.shape != targets.shape[:1]:
        raise ValueError(f"expected one loss an image, got {tuple(losses_B.shape)}")
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(losses_B[0], trained, allow_unused=True)
    gradients = [
        torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)
    ]
    return [losses_B[0].detach(), *gradients]


def _mapped_gradient(
    model: nn.Module, task: Task, inputs: tuple[Tensor, ...], targets: Tensor
) -> list[Tensor]:
    """Return the same gradient in the way of DP training, for a patient of one image."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    rest = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    rest |= {n: b.detach() for n, b in model.named_buffers()}

    def loss(parameters: dict[str, Tensor], inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, {**parameters, **rest}, inputs)
        return task.loss_per_image(outputs, targets).mean()

    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    found = mapped(trained, tuple(part[None] for part in inputs), targets[None])
    return [found[name][0] for name in trained]


def _close(some: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two gradients agree but for rounding, as one vector each."""
    a, b = (torch.cat([part.detach().reshape(-1) for part in parts]) for parts in (some, other))
    return bool((a - b).norm() <= _TOLERANCE * torch.maximum(a.norm(), b.norm()) + 1e-7)


def _cut(inputs: tuple[Tensor, ...], rows: slice | list[int]) -> tuple[Tensor, ...]:
    return tuple(part[rows] for part in inputs)


def made_up(
    task: Task, study: StudyConfig, device: torch.device, num: int = 5
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return `num` images of noise with random labels, as a site would make a batch of them."""
    data = study.data
    shape = (num, data.total_channels, *[data.image_size] * data.dimensions)
    images = torch.randn(shape, generator=torch_rng(0, "plug-in trial")).to(device)
    rng = numpy_rng(0, "plug-in trial labels")
    classes = len(study.task.classes)
    labels = rng.integers(0, classes, num)
    if not study.task.one_label:
        labels = rng.integers(0, 2, (num, classes)).astype("uint8")
    masks = None
    if study.task.type == "segmentation":
        highest = 2**classes if study.task.mode == "multilabel" else classes + 1
        masks = rng.integers(0, highest, (num, *shape[2:])).astype("uint8")
    targets = task.targets(Examples(labels, masks, ("",) * num)).to(device)
    extras: tuple[Tensor, ...] = ()
    if study.uses_fusion:
        views = max(1, len(data.views))
        tabular = torch.randn(num, data.num_tabular, generator=torch_rng(0, "plug-in columns"))
        extras = (torch.ones(num, views, device=device), tabular.to(device))
    return task.inputs(images, extras, targets), targets
