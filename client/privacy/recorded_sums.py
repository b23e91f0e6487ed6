"""The clipped sum of a DP step on a GPU: recorded once, replayed for every chunk of patients.

A chunk has as many patients as the sample left over for it. Here it is filled up to a multiple of
eight, so that few sizes are to be recorded, with rows whose mask is all zero: their loss is zero,
and so is what they add.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medfed.client.privacy.dp_sgd import (
    Clipping,
    LossPerImage,
    PatientBatch,
    sum_function,
)
from medfed.client.recording import Recorded, Recorder, kept, recorder
from medfed.common.study import StudyConfig
from medfed.common.tasks import ImageLoss

_MULTIPLE = 8


class RecordedSums:
    """Adds up what `sum_function` makes of each chunk, in memory of its own.

    Args:
        model: The network, in its training mode.
        loss_per_image: Loss of each image.
        max_grad_norm: L2 bound on one patient's part.
        clipping: flat or automatic.
        record: How the work on a chunk is recorded; None to run it as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_per_image: LossPerImage,
        *,
        max_grad_norm: float,
        clipping: Clipping,
        record: Recorder | None,
    ) -> None:
        sum_of = sum_function(model, loss_per_image, max_grad_norm, clipping)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        totals = {name: torch.zeros_like(p, requires_grad=False) for name, p in trained.items()}

        def add(mask_PK: Tensor, targets_PK: Tensor, *inputs: Tensor) -> Tensor:
            for name, part in sum_of(PatientBatch(inputs, targets_PK, mask_PK)).items():
                totals[name] += part
            return mask_PK

        self._totals = totals
        self._run = Recorded(add, record)

    def of(self, chunks: Iterable[PatientBatch]) -> dict[str, Tensor]:
        """Return the sum over all patients by parameter; the next call overwrites it."""
        for total in self._totals.values():
            total.zero_()
        for chunk in chunks:
            filled = _filled(chunk)
            self._run(filled.mask_PK, filled.targets_PK, *filled.inputs)
        return self._totals


def recorded_sums(
    model: nn.Module, loss: ImageLoss, study: StudyConfig, device: torch.device
) -> RecordedSums | None:
    """Return the sums of this thread's `model` where they are recorded, else None."""
    if device.type != "cuda":
        return None
    # All that a task's loss and the sums depend on.
    key = ("sums", study.task, study.privacy, study.compute, study.semi_supervised, type(loss))

    def make() -> RecordedSums:
        return RecordedSums(
            model,
            loss.loss_per_image,
            max_grad_norm=study.privacy.max_grad_norm,
            clipping=study.privacy.clipping,
            record=recorder(device, enabled=study.compute.cuda_graphs),
        )

    return kept(model, key, make)


def _filled(batch: PatientBatch) -> PatientBatch:
    """Repeat the last patient, with a mask of zeros, up to the next multiple."""
    missing = -len(batch) % _MULTIPLE
    if not missing:
        return batch

    def fill(part: Tensor) -> Tensor:
        return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])

    mask_PK = torch.cat([batch.mask_PK, batch.mask_PK.new_zeros(missing, batch.mask_PK.shape[1])])
    return PatientBatch(tuple(fill(part) for part in batch.inputs), fill(batch.targets_PK), mask_PK)
