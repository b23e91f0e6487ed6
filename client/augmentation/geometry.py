"""Matrices from angles, and images resampled by them, a batch at once.

The conventions are MONAI's: coordinates in pixels from the centre of the image, and matrices that
lead from the result back to the image. `monai.transforms.Affine` gives the same to rounding.

Shapes: B images, C channels, *S spatial, D their number.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = npt.NDArray[np.float64]
# The plane in which each of a volume's angles turns, with the direction of positive angles.
_PLANES = {2: ((0, 1),), 3: ((1, 2), (2, 0), (0, 1))}


def sampling_matrix(
    angles: Sequence[float], shears: Sequence[float], shifts: Sequence[float], zoom: float
) -> Matrix:
    """Return the [D, D + 1] that leads from a place in the result to its place in the image.

    Args:
        angles: One rotation, or three about a volume's axes, radians; none for no rotation.
        shears: Tangents for each ordered pair of different axes; none for no shear.
        shifts: Shift along each axis, pixels.
        zoom: Factor by which the result is larger.
    """
    dimensions = len(shifts)
    matrix = np.eye(dimensions)
    for angle, (first, second) in zip(angles, _PLANES[dimensions], strict=False):
        turn = np.eye(dimensions)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[second, first] = math.sin(angle)
        turn[first, second] = -math.sin(angle)
        matrix = matrix @ turn
    if shears:
        matrix = matrix @ _shearing(shears, dimensions)
    moved = matrix @ np.asarray(shifts)
    return np.concatenate([matrix / zoom, moved[:, None]], axis=1)


def _shearing(shears: Sequence[float], dimensions: int) -> Matrix:
    pairs = [(i, j) for i in range(dimensions) for j in range(dimensions) if i != j]
    matrix = np.eye(dimensions)
    for (row, column), tangent in zip(pairs, shears, strict=True):
        # The elementary shear from the left: each keeps areas as they are, and so do all.
        matrix[row] += tangent * matrix[column]
    return matrix


def resample(images: Tensor, matrices_BDE: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Return `images` [B, C, *S] seen through matrices [B, D, D + 1]; zero where there is none.

    Built from products and sums of single numbers: an image's result does not depend on what else
    is in the batch, bit for bit.
    """
    shape = images.shape[2:]
    centred = [
        torch.arange(side, dtype=images.dtype, device=images.device) - (side - 1) / 2
        for side in shape
    ]
    ones = (1,) * len(shape)
    coordinates = []
    # grid_sample wants the last axis first, from -1 to 1 between the outer edges of the image.
    for row in reversed(range(len(shape))):
        place = matrices_BDE[:, row, -1].reshape(-1, *ones)
        for axis, steps in enumerate(centred):
            along = [1] * len(shape)
            along[axis] = -1
            slope = matrices_BDE[:, row, axis].reshape(-1, *ones)
            place = place + slope * steps.reshape(along)
        coordinates.append(place * (2 / shape[row]))
    grid = torch.stack(coordinates, dim=-1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
