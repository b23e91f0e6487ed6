"""What each layer saw and what came back to it, written down during one forward and backward pass.

Shapes: N images, P patients of K images each (N = P K), C channels; D numbers of an input, O
outputs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medfed.client.privacy.gradient_parts import (
    ConvolutionRows,
    EmbeddingRows,
    LinearRows,
    OwnGradients,
    Part,
    by_patient,
    rows_pay,
    rows_pay_convolution,
)
from medfed.client.privacy.patches import (
    Geometry,
    gradients_by_image,
    patches_are_small,
    weight_gradient,
)


class Records:
    """The records of one forward and backward pass over a chunk of patients.

    Args:
        trained: The parameters that train.
        num_patients: P; images lie patient by patient.
    """

    def __init__(self, trained: Iterable[nn.Parameter], num_patients: int) -> None:
        self.num_patients = num_patients
        self._trained = {id(parameter): parameter for parameter in trained}
        self._num_calls: dict[int, int] = {}
        self._own: dict[int, Tensor] = {}
        self._convolutions: dict[int, ConvolutionRows] = {}
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._tables: set[int] = set()

    def trains(self, parameter: Tensor | None) -> bool:
        """Whether it is one of the parameters that train."""
        return id(parameter) in self._trained

    def part(self, parameter: nn.Parameter) -> Part:
        """Return what was written down for `parameter`; zeros if it had no part in the loss."""
        key = id(parameter)
        if key in self._convolutions:
            return self._convolutions[key]
        if key in self._rows:
            return self._part_of_rows(parameter)
        if key in self._own:
            return OwnGradients(self._own[key])
        return OwnGradients(parameter.new_zeros(self.num_patients, *parameter.shape))

    def expect(self, parameter: Tensor) -> None:
        """Note a call with a convolution's weight."""
        self._num_calls[id(parameter)] = self._num_calls.get(id(parameter), 0) + 1

    def add_own(self, parameter: Tensor, by_image: Tensor) -> None:
        """Add gradients of each image, [N, *parameter.shape], or of each patient."""
        gradients = by_image
        if len(by_image) != self.num_patients:
            gradients = by_patient(by_image, self.num_patients).sum(dim=1)
        key = id(parameter)
        self._own[key] = self._own[key] + gradients if key in self._own else gradients

    def add_linear(self, weight: Tensor, inputs: Tensor, gradients: Tensor) -> None:
        """Add a call of a linear layer, inputs [N, *, D] and gradients [N, *, O]."""
        inputs_PRD, gradients_PRO = self._by_patient(inputs), self._by_patient(gradients)
        outputs, size = weight.shape
        # Rows that take less room than their product wait for those of the other calls.
        if inputs_PRD.shape[1] * (size + outputs) < size * outputs:
            self._rows.setdefault(id(weight), []).append((inputs_PRD, gradients_PRO))
        else:
            self.add_own(weight, gradients_PRO.transpose(1, 2) @ inputs_PRD)

    def add_embedding(self, weight: Tensor, words: Tensor, gradients: Tensor) -> None:
        """Add a look-up of `words` [N, *] in a table, gradients [N, *, D]."""
        self._tables.add(id(weight))
        both = words.reshape(self.num_patients, -1), self._by_patient(gradients)
        self._rows.setdefault(id(weight), []).append(both)

    def add_convolution(
        self, weight: Tensor, patched: Tensor, plain: Tensor, geometry: Geometry, groups: int
    ) -> None:
        """Add a call of a convolution; see `ConvolutionRows` for what is patched and plain."""
        once = self._num_calls[id(weight)] == 1 and groups == 1
        if once and rows_pay_convolution(patched, plain, weight, self.num_patients):
            self._convolutions[id(weight)] = ConvolutionRows(
                patched.detach(), plain.detach(), geometry, self.num_patients
            )
            return
        if groups == 1 and patches_are_small(weight):
            self.add_own(weight, gradients_by_image(patched.detach(), plain.detach(), geometry))
            return
        if _channels_last(patched) and _channels_last(plain):
            self.add_own(weight, self._one_by_one(patched, plain, geometry, groups))
            return
        # Each patient as a group of channels of its own: one call makes all gradients.
        patients_as_groups = weight_gradient(
            self._channels_by_patient(patched),
            self._channels_by_patient(plain),
            geometry,
            self.num_patients * groups,
        )
        own = patients_as_groups.view(self.num_patients, *weight.shape)
        self.add_own(weight, own)

    def _part_of_rows(self, parameter: nn.Parameter) -> Part:
        calls = self._rows[id(parameter)]
        inputs, gradients = (
            torch.cat(both, dim=1) if len(calls) > 1 else both[0]
            for both in zip(*calls, strict=True)
        )
        if id(parameter) in self._tables:
            return EmbeddingRows(inputs, gradients, len(parameter))
        if id(parameter) in self._own:  # other calls had too many rows to wait
            own = self._own[id(parameter)]
            return OwnGradients(own + gradients.transpose(1, 2) @ inputs)
        if rows_pay(inputs.shape[1], inputs.shape[2], gradients.shape[2]):
            return LinearRows(inputs, gradients)
        return OwnGradients(gradients.transpose(1, 2) @ inputs)

    def _by_patient(self, part: Tensor) -> Tensor:
        # Without what they were made by, which would keep all of the forward pass in memory.
        return part.detach().reshape(self.num_patients, -1, part.shape[-1])

    def _one_by_one(
        self, patched: Tensor, plain: Tensor, geometry: Geometry, groups: int
    ) -> Tensor:
        # As groups of channels they would be copied, channels first.
        images = patched.detach().chunk(self.num_patients)
        gradients = plain.detach().chunk(self.num_patients)
        return torch.stack(
            [
                weight_gradient(x, g, geometry, groups)
                for x, g in zip(images, gradients, strict=True)
            ]
        )

    def _channels_by_patient(self, images: Tensor) -> Tensor:
        """Return [K, P C, *S] of [P K, C, *S]."""
        return by_patient(images, self.num_patients).transpose(0, 1).flatten(1, 2)


def _channels_last(images: Tensor) -> bool:
    return (
        images.dim() == 4
        and images.is_contiguous(memory_format=torch.channels_last)
        and not images.is_contiguous()
    )
