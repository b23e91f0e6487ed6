"""Draws one stored image as pictures to look at: a panel a view or slice, masks as outlines.

Shapes: C channels, *S spatial: H, W for images and D, H, W (right, anterior, superior) for volumes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfed.client.data.store import Store

Pixels = npt.NDArray[np.uint8]

# Told apart by people who see no red or no green too (Okabe and Ito 2008), against grey and skin.
COLORS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (255, 255, 255),
)


def draw_panels(store: Store, row: int, side: int) -> list[tuple[str, Image.Image]]:
    """Return an image's panels, each with what it shows ("" for a single picture).

    Args:
        store: The store.
        row: Which image.
        side: Longest side of a panel, pixels.
    """
    image, mask = _read(store, row)
    layers = [] if mask is None else _layers(store, mask)
    if image.ndim == 4:
        return [
            (name, _draw([channel], outlines, side))
            for name, channels, outlines in _slices(image, layers)
            for channel in channels
        ]
    per_view = image.shape[0] // max(1, len(store.views))
    panels = []
    for number, view in enumerate(store.views or ("",)):
        channels = image[number * per_view : (number + 1) * per_view]
        if store.present is not None and not store.present[row, number]:
            view = f"no {view}"
        groups = (
            [channels] if per_view in (1, 3) else [channels[n : n + 1] for n in range(per_view)]
        )
        panels += [(view, _draw(list(group), layers, side)) for group in groups]
    return panels


def _read(store: Store, row: int) -> tuple[Pixels, Pixels | None]:
    """The image [C, *S] and its mask *S, without padding."""
    corner = () if store.shapes is None else tuple(slice(int(n)) for n in store.shapes[row])
    image = np.asarray(store.images_NCHW[row])[(slice(None), *corner)]
    return image, None if store.masks_NHW is None else np.asarray(store.masks_NHW[row])[corner]


def _layers(store: Store, mask: Pixels) -> list[npt.NDArray[np.bool_]]:
    """Where each structure is, *S each."""
    if store.mode == "multilabel":
        return [(mask >> index & 1).astype(bool) for index in range(len(store.classes))]
    return [mask == index + 1 for index in range(len(store.classes))]


def _slices(
    image: Pixels, layers: Sequence[npt.NDArray[np.bool_]]
) -> Iterator[tuple[str, Pixels, list[npt.NDArray[np.bool_]]]]:
    """Axial, coronal and sagittal slice, each with its channels and outlines.

    Through the middle, or where most of the mask is. The patient's right, or front, is on the left
    and the front, or head, on top.
    """
    whole = np.any(layers, axis=0) if layers else None
    for name, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        place = image.shape[axis + 1] // 2
        if whole is not None and whole.any():
            others = tuple(other for other in range(3) if other != axis)
            place = int(whole.sum(axis=others).argmax())
        channels = np.take(image, place, axis=axis + 1)
        turned = np.flip(channels.transpose(0, 2, 1), (1, 2))
        cuts = [np.flip(np.take(layer, place, axis=axis).T, (0, 1)) for layer in layers]
        yield name, turned, cuts


def _draw(
    channels: Sequence[Pixels], layers: Sequence[npt.NDArray[np.bool_]], side: int
) -> Image.Image:
    pixels = np.stack(channels if len(channels) == 3 else [channels[0]] * 3, axis=-1)
    scale = side / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    drawn = np.array(picture.resize(size, Image.Resampling.BILINEAR))
    for layer, color in zip(layers, COLORS, strict=False):
        shape = Image.fromarray(np.ascontiguousarray(layer).astype(np.uint8))
        inside = np.asarray(shape.resize(size, Image.Resampling.NEAREST)) > 0
        drawn[_outline(inside)] = color
    return Image.fromarray(drawn)


def _outline(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The places inside that have a neighbour, or the picture's edge, outside."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
