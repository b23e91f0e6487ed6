"""Brings decoded images and masks into the size, channels and type that a store holds.

Shapes: C channels, *S spatial: H, W for images and D, H, W for volumes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from medfed.common.errors import UnreadableImageError
from medfed.common.study import DataSection

# How far the proportions of a mask may be off those of its image.
_MAX_STRETCH = 0.02

# Kinds of NumPy types that hold whole numbers: bool, signed, unsigned.
_WHOLE = "biu"

Pixels = npt.NDArray[np.uint8]


def fit_image(
    pixels: npt.NDArray[np.generic],
    image: DataSection,
    source: str,
    spacing_mm: Sequence[float] | None = None,
) -> Pixels:
    """Return `pixels` (0..255, *S or [*S, C]) as uint8 [C, *S] in the size that `image` states.

    Three channels become grey by luma, grey is repeated over channels; any other difference is an
    error. Images are resampled bilinearly with antialiasing, volumes trilinearly.

    Raises:
        UnreadableImageError: Dimensions or channels that do not fit, NaN or infinite values, or
            a volume without the voxel size that data.spacing_mm needs.
    """
    values = _checked(pixels, image, source)
    if image.dimensions == 2:
        return _fit_picture(values, image)
    size = target_size(values.shape[:3], image, source, spacing_mm)
    floats = np.asarray(values, dtype=np.float32)
    return _fit_volume(_match_channels_3d(floats, image), size)


def fit_mask(
    mask: npt.NDArray[np.uint8],
    image: DataSection,
    source: str,
    shape: Sequence[int],
    fitted_shape: Sequence[int],
) -> Pixels:
    """Return `mask` resampled like its image, by nearest neighbour: indices are never averaged.

    Args:
        mask: uint8 *S.
        image: Size of the stored images.
        source: What an error names.
        shape: Spatial shape of the image as decoded.
        fitted_shape: Spatial shape of the image as stored.

    Raises:
        UnreadableImageError: A mask of another geometry than its image.
    """
    if mask.ndim != image.dimensions:
        raise UnreadableImageError(
            f"{source}: expected a mask of {image.dimensions} dimensions, got {mask.ndim}."
        )
    if not _same_geometry(mask.shape, shape, image):
        raise UnreadableImageError(
            f"{source}: the mask of shape {list(mask.shape)} and the image of shape {list(shape)} "
            f"are of different geometry{_turned(mask.shape, shape)}. Export the two again from "
            "the same study."
        )
    if image.dimensions == 2:
        size = (fitted_shape[1], fitted_shape[0])
        if (mask.shape[1], mask.shape[0]) == size:
            return mask
        picture = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        return np.asarray(picture, dtype=np.uint8)
    if mask.shape == tuple(fitted_shape):
        return mask
    volume = torch.from_numpy(mask)[None, None].float()
    resized = F.interpolate(volume, size=tuple(fitted_shape), mode="nearest-exact")
    return resized[0, 0].to(torch.uint8).numpy()


def fit_views(
    views: Mapping[str, npt.NDArray[np.generic]], image: DataSection, source: str
) -> tuple[Pixels, Pixels]:
    """Return the views of one examination side by side, uint8 [V*C, *S], and which are there [V].

    A view that is missing is black; whoever reads the store is told by the second array.
    """
    fitted = {name: fit_image(pixels, image, source) for name, pixels in views.items()}
    if not fitted:
        raise UnreadableImageError(
            f"{source}: expected at least one of the views {', '.join(image.views)}, got none."
        )
    blank = np.zeros_like(next(iter(fitted.values())))
    present = np.array([name in fitted for name in image.views], dtype=np.uint8)
    return np.concatenate([fitted.get(name, blank) for name in image.views]), present


def target_size(
    shape: Sequence[int],
    image: DataSection,
    source: str,
    spacing_mm: Sequence[float] | None,
) -> tuple[int, ...]:
    """Return the spatial shape in which an image of `shape` is stored."""
    if image.fit == "resize":
        return (image.image_size,) * image.dimensions
    if image.dimensions == 2:
        if image.stored_size is None:
            return tuple(shape)
        factor = image.stored_size / max(shape)
        return tuple(max(1, round(side * factor)) for side in shape)
    if image.spacing_mm is None:
        return tuple(shape)
    if spacing_mm is None or len(spacing_mm) != 3 or not all(0 < s < math.inf for s in spacing_mm):
        raise UnreadableImageError(
            f"{source}: expected the size of a voxel in mm for data.spacing_mm, got {spacing_mm}. "
            "Mend the file's header, or leave out data.spacing_mm."
        )
    return tuple(
        max(1, round(side * own / image.spacing_mm))
        for side, own in zip(shape, spacing_mm, strict=True)
    )


def _checked(
    pixels: npt.NDArray[np.generic], image: DataSection, source: str
) -> npt.NDArray[np.generic]:
    """The pixels, as float32 unless they are whole numbers, which need no rounding."""
    allowed = (image.dimensions, image.dimensions + 1)
    if pixels.ndim not in allowed or not pixels.size:
        sides = "[H, W] or [H, W, C]" if image.dimensions == 2 else "[D, H, W] or [D, H, W, C]"
        raise UnreadableImageError(
            f"{source}: expected pixels of shape {sides}, got {list(pixels.shape)}."
        )
    if pixels.ndim == image.dimensions + 1 and not _channels_fit(pixels.shape[-1], image):
        raise UnreadableImageError(
            f"{source}: expected {image.channels} channel(s), got {pixels.shape[-1]}. "
            "Set data.channels to what the files hold."
        )
    if pixels.dtype.kind in _WHOLE:
        return pixels
    values = np.asarray(pixels, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UnreadableImageError(f"{source}: holds NaN or infinite pixels.")
    return values


def _channels_fit(channels: int, image: DataSection) -> bool:
    from_colour = channels == 3 and image.channels == 1 and image.dimensions == 2
    return channels in (1, image.channels) or from_colour


def _fit_picture(values: npt.NDArray[np.generic], image: DataSection) -> Pixels:
    bytes_HWC = _as_bytes(values)
    if bytes_HWC.ndim == 3 and bytes_HWC.shape[2] == 1:
        bytes_HWC = bytes_HWC[:, :, 0]
    size = target_size(bytes_HWC.shape[:2], image, "", None)
    if bytes_HWC.ndim == 3 and bytes_HWC.shape[2] in (2, 4):
        # Not colours: Pillow would blend the fourth channel as transparency.
        planes = [_resize(Image.fromarray(plane), size) for plane in np.moveaxis(bytes_HWC, 2, 0)]
        return np.stack([np.asarray(plane, dtype=np.uint8) for plane in planes])
    picture, mode = Image.fromarray(bytes_HWC), "RGB" if image.channels == 3 else "L"
    if picture.mode != mode:
        picture = picture.convert(mode)
    array = np.asarray(_resize(picture, size), dtype=np.uint8)
    if array.ndim == 3:
        return np.ascontiguousarray(array.transpose(2, 0, 1))
    return np.repeat(array[None], image.channels, axis=0)


def _as_bytes(values: npt.NDArray[np.generic]) -> Pixels:
    if values.dtype in (np.uint8, np.bool_):
        return values.astype(np.uint8, copy=False)
    whole = values if values.dtype.kind in _WHOLE else np.rint(values.astype(np.float32))
    return np.clip(whole, 0, 255).astype(np.uint8)


def _resize(picture: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """Resize to (height, width)."""
    wanted = (size[1], size[0])
    if picture.size == wanted:
        return picture
    return picture.resize(wanted, Image.Resampling.BILINEAR)


def _match_channels_3d(
    values: npt.NDArray[np.float32], image: DataSection
) -> npt.NDArray[np.float32]:
    if values.ndim == 3:
        values = values[..., None]
    if values.shape[-1] == 1:
        values = np.repeat(values, image.channels, axis=-1)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _fit_volume(values_CDHW: npt.NDArray[np.float32], size: tuple[int, ...]) -> Pixels:
    if values_CDHW.shape[1:] != size:
        volume = torch.from_numpy(values_CDHW)[None]
        values_CDHW = F.interpolate(volume, size=size, mode="trilinear")[0].numpy()
    return np.clip(np.rint(values_CDHW), 0, 255).astype(np.uint8)


def _turned(mask: Sequence[int], shape: Sequence[int]) -> str:
    if tuple(mask) != tuple(shape) and sorted(mask) == sorted(shape):
        return " (the same sides in another order: one of the two is turned)"
    return ""


def _same_geometry(mask: Sequence[int], shape: Sequence[int], image: DataSection) -> bool:
    if image.dimensions == 3:
        return tuple(mask) == tuple(shape)
    stretch = (mask[0] / shape[0]) / (mask[1] / shape[1])
    return abs(stretch - 1) <= _MAX_STRETCH
