"""A parameter's gradients of all patients, kept as what they are made of.

A gradient of a linear layer is a sum over rows r (positions of all of a patient's images) of outer
products g_r a_r^T of an output's gradient and an input. Its norm needs no product of the two:

    |sum_r g_r a_r^T|^2 = sum_{r,s} <a_r, a_s> <g_r, g_s>

and the sum over patients of factor * gradient is one product of all rows, as without privacy. Where
there are many rows and few weights, the gradient of each patient itself is cheaper.

The sum is made in single precision: where a patient's rows cancel, what it adds to the sum is wrong
by rounding in proportion to its *reach*, sum_r |a_r| |g_r|, however small the gradient. Clipping by
the norm alone would enlarge that. So rows count `_GUARD` times their reach as part of the norm, and
the Gram matrices, whose own rounding is in proportion to the reach, are made in double precision.

Reference: Bu et al. 2022, https://arxiv.org/abs/2210.00038; Gram matrices over the positions of a
convolution: Rochette et al. 2019, https://arxiv.org/abs/1912.06015

Shapes: P patients, K images of each, T positions of an output, R = K T rows of a patient, D numbers
of an input (of a patch, for a convolution), O outputs.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from medfed.client.privacy.patches import Geometry, weight_gradient

# Times the precision of the numbers: 1.2e-4 in single precision.
_GUARD = 1024
# A number of a patient's own gradient is written, squared and added up: as much time as so many
# multiplications of a matrix product, measured on a CPU.
_COST_OF_KEEPING = 32


class Part(Protocol):
    """The gradients of one parameter, of all patients of a chunk."""

    def squares_P(self) -> Tensor:
        """Return the squared norm of each patient's gradient (never too small), float64."""
        ...

    def weighted_sum(self, factors_P: Tensor) -> Tensor:
        """Return the sum over patients of factor * gradient, of the parameter's shape."""
        ...

    def without_others(self, kept_P: Tensor) -> "Part":
        """Return the gradients with zeros for all patients but the ones kept (bool)."""
        ...


def rows_pay(num_rows: int, inputs: int, outputs: int) -> bool:
    """Whether norms by Gram matrices take less time than a gradient for each patient.

    A function of shapes alone: every grid and every machine chooses the same.
    """
    return _pays(num_rows**2 * (inputs + outputs), inputs * outputs)


def rows_pay_convolution(patched: Tensor, plain: Tensor, weight: Tensor, num_patients: int) -> bool:
    """Whether that is so for a convolution; see `ConvolutionRows` for what is patched and plain."""
    positions = patched[:, 0].numel() // num_patients
    num_rows = plain[:, 0].numel() // num_patients
    gram = positions**2 * patched.shape[1] + num_rows**2 * plain.shape[1]
    # Adding up what lies at each offset reads memory only, which counts more than arithmetic.
    return _pays(gram + 2 * num_rows**2 * sum(weight.shape[2:]), weight.numel())


def _pays(multiplications: int, numbers: int) -> bool:
    # Double precision takes twice the time.
    return 2 * multiplications <= _COST_OF_KEEPING * numbers


@dataclass(frozen=True)
class OwnGradients:
    """The gradients themselves, [P, *parameter.shape]."""

    gradients: Tensor

    def squares_P(self) -> Tensor:
        """Return the squared norm of each patient's gradient."""
        norms_P: Tensor = torch.linalg.vector_norm(self._rows(), dim=1)
        return norms_P.double().square()

    def weighted_sum(self, factors_P: Tensor) -> Tensor:
        """Return the sum over patients of factor * gradient."""
        return (factors_P @ self._rows()).view(self.gradients.shape[1:])

    def without_others(self, kept_P: Tensor) -> "OwnGradients":
        """Return the gradients with zeros for all patients but the ones kept."""
        return OwnGradients(_keep(self.gradients, kept_P))

    def _rows(self) -> Tensor:
        return self.gradients.flatten(1)


@dataclass(frozen=True)
class LinearRows:
    """Of a linear layer, over all calls in one forward pass."""

    inputs_PRD: Tensor
    gradients_PRO: Tensor

    def squares_P(self) -> Tensor:
        """Return the squared norm of each patient's gradient."""
        return _squares_of_rows(_gram(self.inputs_PRD), _gram(self.gradients_PRO), self.inputs_PRD)

    def weighted_sum(self, factors_P: Tensor) -> Tensor:
        """Return the sum over patients of factor * gradient."""
        inputs, gradients = _weighted(self.inputs_PRD, self.gradients_PRO, factors_P)
        return gradients.flatten(0, 1).T @ inputs.flatten(0, 1)

    def without_others(self, kept_P: Tensor) -> "LinearRows":
        """Return the gradients with zeros for all patients but the ones kept."""
        return LinearRows(_keep(self.inputs_PRD, kept_P), _keep(self.gradients_PRO, kept_P))


@dataclass(frozen=True)
class EmbeddingRows:
    """Of a table of words: the inputs are rows of a unit matrix, one where the words are equal."""

    words_PR: Tensor
    gradients_PRD: Tensor
    num_words: int

    def squares_P(self) -> Tensor:
        """Return the squared norm of each patient's gradient."""
        same_PRR = self.words_PR.unsqueeze(2) == self.words_PR.unsqueeze(1)
        return _squares_of_rows(same_PRR.double(), _gram(self.gradients_PRD), self.gradients_PRD)

    def weighted_sum(self, factors_P: Tensor) -> Tensor:
        """Return the sum over patients of factor * gradient."""
        weighted = self.gradients_PRD * factors_P[:, None, None]
        total: Tensor = torch.ops.aten.embedding_dense_backward(
            weighted.flatten(0, 1), self.words_PR.flatten(), self.num_words, -1, False
        )
        return total

    def without_others(self, kept_P: Tensor) -> "EmbeddingRows":
        """Return the gradients with zeros for all patients but the ones kept."""
        return EmbeddingRows(self.words_PR, _keep(self.gradients_PRD, kept_P), self.num_words)


@dataclass(frozen=True)
class ConvolutionRows:
    """Of a convolution: its rows are patches of `patched` beside the numbers of `plain` there.

    They are its input and its output's gradient; of a transposed one, the other way round.

    Attributes:
        patched: [P K, C, *S].
        plain: [P K, C', *T].
        geometry: Of the convolution from `patched` to `plain`.
        num_patients: P.
    """

    patched: Tensor
    plain: Tensor
    geometry: Geometry
    num_patients: int

    def squares_P(self) -> Tensor:
        """Return the squared norm of each patient's gradient."""
        plain_PRO = by_patient(self.plain, self.num_patients).flatten(3).transpose(2, 3)
        return _squares_of_rows(self._gram_of_patches(), _gram(plain_PRO.flatten(1, 2)), self.plain)

    def weighted_sum(self, factors_P: Tensor) -> Tensor:
        """Return the sum over patients of factor * gradient."""
        factors = factors_P.repeat_interleave(len(self.plain) // self.num_patients)
        patched, plain = _weighted(self.patched, self.plain, factors)
        return weight_gradient(patched, plain, self.geometry, groups=1)

    def without_others(self, kept_P: Tensor) -> "ConvolutionRows":
        """Return the gradients with zeros for all patients but the ones kept."""
        kept = kept_P.repeat_interleave(len(self.plain) // self.num_patients)
        patched, plain = _keep(self.patched, kept), _keep(self.plain, kept)
        return ConvolutionRows(patched, plain, self.geometry, self.num_patients)

    def _gram_of_patches(self) -> Tensor:
        """Return [P, R, R]: products of patches, each a sum of products of single positions."""
        sides = self.patched.shape[2:]
        images = by_patient(self.patched, self.num_patients)
        num_images = images.shape[1]
        positions = _gram(images.flatten(3).transpose(2, 3).flatten(1, 2))
        products = positions.view(self.num_patients, num_images, *sides, num_images, *sides)
        for dim in range(len(sides)):
            products = self._added_along(products, dim)
        num_rows = num_images * math.prod(self.plain.shape[2:])
        return products.reshape(self.num_patients, num_rows, num_rows)

    def _added_along(self, products: Tensor, dim: int) -> Tensor:
        """Add up the products of positions that lie at each offset in the kernel, along `dim`."""
        one, other = dim + 2, dim + len(self.geometry.kernel) + 3
        pad, step = self.geometry.padding[dim], self.geometry.stride[dim]
        if pad:
            # Positions in the padding are zeros.
            around = [0] * (2 * products.dim())
            for axis in (one, other):
                around[2 * axis : 2 * axis + 2] = pad, pad
            products = F.pad(products, around[::-1])
        length = step * (self.plain.shape[2 + dim] - 1) + 1
        total: Tensor | None = None
        for offset in range(self.geometry.kernel[dim]):
            start = offset * self.geometry.dilation[dim]
            window = slice(start, start + length, step)
            at = [slice(None)] * products.dim()
            at[one] = at[other] = window
            part = products[tuple(at)]
            total = part.clone() if total is None else total.add_(part)
        assert total is not None
        return total


def by_patient(images: Tensor, num_patients: int) -> Tensor:
    """Return [P, K, ...] of [P K, ...]."""
    return images.reshape(num_patients, -1, *images.shape[1:])


def _gram(rows_PRD: Tensor) -> Tensor:
    rows = rows_PRD.double()
    return rows @ rows.transpose(1, 2)


def _squares_of_rows(inputs_PRR: Tensor, gradients_PRR: Tensor, like: Tensor) -> Tensor:
    squares_P = (inputs_PRR * gradients_PRR).sum(dim=(1, 2)).clamp(min=0.0)
    lengths_PR = inputs_PRR.diagonal(dim1=1, dim2=2) * gradients_PRR.diagonal(dim1=1, dim2=2)
    reach_P = lengths_PR.sqrt().sum(dim=1)
    return squares_P + (_GUARD * torch.finfo(like.dtype).eps * reach_P).square()


def _weighted(one: Tensor, other: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply the smaller of two factors of a product; neither is overwritten: others have it."""

    def times(part: Tensor) -> Tensor:
        return part * factors.view(-1, *[1] * (part.dim() - 1))

    return (times(one), other) if one.numel() < other.numel() else (one, times(other))


def _keep(part: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept.view(-1, *[1] * (part.dim() - 1)), part, 0.0)
