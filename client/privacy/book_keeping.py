"""The clipped sum of a chunk of patients by one forward and one backward pass, without vmap.

    forward and backward over all images at once; every layer writes down input and output gradient
    -> norm of each patient's whole gradient, from what was written down -> clip factors
    -> sum over patients of factor * gradient, a product a layer, from what was written down

That is book-keeping (Bu et al. 2022, https://arxiv.org/abs/2210.00038) with a patient of several
images in place of a record: a patient's rows are the positions of all its images.

All images are in one batch here, so the network itself must not mix them; `torch.func.vmap` sees
to that for any network. `keeps_books` says for which networks this is known. The loss of each
patient is computed under vmap in either case.

Shapes: P patients in a chunk, K images a patient (padded).
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medfed.client.privacy.clipping import (
    Clipping,
    LossPerImage,
    PatientBatch,
    clip_factors,
)
from medfed.client.privacy.layer_records import Records
from medfed.client.privacy.listening import listening

# Networks made of these packages' modules have been checked; of another's we know nothing.
_CHECKED = ("medfed.common.models.", "monai.networks.", "torch.nn.modules.")
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
_LAYERS = (nn.Linear, *_CONVOLUTIONS, nn.GroupNorm, nn.LayerNorm, nn.PReLU, nn.Embedding)
_LOW_RANK = {"low_rank_a", "low_rank_b"}


def keeps_books(model: nn.Module) -> bool:
    """Whether clipped sums of `model` are made by book-keeping: a function of the model alone.

    It is if the network never mixes the images of a batch, and if what trains are weights and
    biases of layers that are listened to. A network from another package says the former of itself
    by `images_apart = True` on its class.
    """
    root = type(model).__module__
    if not (root.startswith(_CHECKED[0]) or getattr(type(model), "images_apart", False)):
        return False  # A bare nn.Sequential may hold anything, nn.Flatten(0) for one.
    if len(list(model.parameters())) != len(list(model.named_parameters(remove_duplicate=False))):
        return False  # Tied weights: their gradients are of one sum, over layers of two kinds.
    return all(map(_is_known, model.modules()))


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    if not (kind.__module__.startswith(_CHECKED) or getattr(kind, "images_apart", False)):
        return False
    if isinstance(module, _BatchNorm) and module.training:
        return False
    trained = {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}
    if not trained - _LOW_RANK:
        return True
    # Not a derived class: it may see its weight through a function of its own.
    if kind not in _LAYERS and not (trained == {"bias"} and isinstance(module, _CONVOLUTIONS)):
        return False
    return _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer has none of the options that its node of autograd does not know."""
    if isinstance(module, nn.Embedding):
        whole = module.padding_idx is None and module.max_norm is None
        return whole and not (module.scale_grad_by_freq or module.sparse)
    if isinstance(module, _CONVOLUTIONS):
        return not isinstance(module.padding, str)
    return True


class BookKeeping:
    """Adds up the clipped gradients of chunks of patients.

    Args:
        model: A network that `keeps_books`, or that mixes no images for another reason.
        loss_per_image: Loss of each image.
        max_grad_norm: L2 bound on one patient's part.
        clipping: flat or automatic.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_per_image: LossPerImage,
        max_grad_norm: float,
        clipping: Clipping,
    ) -> None:
        self._model = model
        self._max_grad_norm = max_grad_norm
        self._clipping: Clipping = clipping
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

        def loss_of_patient(outputs_K: Tensor, targets_K: Tensor, mask_K: Tensor) -> Tensor:
            losses_K = loss_per_image(outputs_K, targets_K)
            return (losses_K * mask_K).sum() / mask_K.sum().clamp(min=1.0)

        # By torch.func, not by autograd through vmap: that goes back through a cross entropy by
        # `scatter_add`, whose deterministic form on a GPU sorts, and was not always recordable.
        self._pull = torch.func.vmap(torch.func.grad(loss_of_patient))

    @torch.no_grad()
    def __call__(self, batch: PatientBatch) -> dict[str, Tensor]:
        """Return the sum over the patients of `batch`; one not finite counts as zero."""
        records = self._recorded(batch)
        parts = [records.part(parameter) for parameter in self._trained.values()]
        squares_P = torch.stack([part.squares_P() for part in parts]).sum(dim=0)
        # As where norms are in single precision: what overflows when it is squared is too long.
        kept_P = squares_P <= torch.finfo(next(iter(self._trained.values())).dtype).max
        factors_P = clip_factors(squares_P.sqrt(), self._max_grad_norm, self._clipping)
        factors_P = torch.where(kept_P, factors_P, 0.0).to(batch.mask_PK.dtype)
        # A GPU need not be waited for: there it costs less to do it than to ask.
        if kept_P.device.type != "cpu" or not kept_P.all():
            parts = [part.without_others(kept_P) for part in parts]
        sums = [part.weighted_sum(factors_P) for part in parts]
        return dict(zip(self._trained, sums, strict=True))

    def _recorded(self, batch: PatientBatch) -> Records:
        num_patients, num_images = batch.mask_PK.shape
        records = Records(self._trained.values(), num_patients)
        with torch.enable_grad():
            with listening(records):
                outputs = self._model(*(part.flatten(0, 1) for part in batch.inputs))
            by_patient = outputs.detach().unflatten(0, (num_patients, num_images))
            pull = self._pull(by_patient, batch.targets_PK, batch.mask_PK).flatten(0, 1)
            # Every node keeps its parameters' gradients to itself.
            missed = torch.autograd.grad(
                outputs, list(self._trained.values()), pull, allow_unused=True
            )
        names = [n for n, g in zip(self._trained, missed, strict=True) if g is not None]
        if names:
            raise RuntimeError(
                "Expected parameters that only listened-to layers use, but others use "
                f"{', '.join(names)}: a gradient that was not clipped. keeps_books must refuse it."
            )
        return records
