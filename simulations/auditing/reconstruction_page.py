"""The picture of a reconstruction: original, without privacy, under privacy, control, in rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from medfed.simulations.reporting.drawing import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Row(Protocol):
    """Images [C, *S] in 0..1; `private` may be missing."""

    @property
    def truth(self) -> Tensor:
        """The image."""
        ...

    @property
    def plain(self) -> Tensor:
        """Made of its update without privacy."""
        ...

    @property
    def private(self) -> Tensor | None:
        """Made of its update under the study's privacy."""
        ...

    @property
    def control(self) -> Tensor:
        """Made of another patient's update."""
        ...


def picture_figure(rows: Sequence[Row]) -> bytes:
    """Return the rows side by side as a PNG."""
    drawing = draw("reconstruction", "Reconstructions from updates.", lambda: _plot(rows))
    assert drawing is not None
    return drawing.png


def _plot(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    titles = ["Original", "Without privacy", "As the study sends it", "Control"]
    table = [[row.truth, row.plain, row.private, row.control] for row in rows]
    if rows[0].private is None:
        titles, table = [*titles[:2], titles[3]], [[*line[:2], line[3]] for line in table]
    figure = Figure(figsize=(1.9 * len(titles), 2.0 * len(rows) + 0.2))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, cells in zip(table, axes, strict=True):
        for title, image, cell in zip(titles, line, cells, strict=True):
            assert image is not None
            cell.imshow(_shown(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set_axis_off()
            if line is table[0]:
                cell.set_title(title)
    return figure


def _shown(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """[H, W] or, of colour images, [H, W, 3]; of a volume the middle slice, of views the first."""
    pixels = image.numpy()
    if pixels.ndim == 4:
        pixels = pixels[..., pixels.shape[-1] // 2]
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
