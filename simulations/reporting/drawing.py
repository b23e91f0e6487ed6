"""How figures look, and how they become files and parts of a page.

A colour is a name in `INK`: files get the light palette; on the page each colour becomes a CSS
variable (`var(--blue)`), so that figures follow light, dark and print. matplotlib is imported late:
it takes half a second that `medfed --help` must not pay.

Series colours are those of Okabe and Ito, https://jfly.uni-koeln.de/color/, told apart by readers
with any of the common colour vision deficiencies; markers and labels say the same a second time.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Every value is unique: on the page a colour is found again by it.
INK = {
    "ink": "#1b1f24",
    "muted": "#5c6670",
    "grid": "#d9dee3",
    "paper": "#fffffe",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#b0568c",
    "amber": "#c98500",
    "sky": "#56b4e9",
    "yellow": "#e3d435",
    "grey": "#8d969f",
}
FEDERATED_COLOUR, POOLED_COLOUR, LOCAL_COLOUR = INK["blue"], INK["vermillion"], INK["green"]
CYCLE = tuple(
    INK[name]
    for name in ("blue", "amber", "green", "purple", "sky", "vermillion", "grey", "yellow")
)
# Around a marker, so that one on another can be told from it.
HALO: dict[str, Any] = {"markeredgecolor": INK["paper"], "markeredgewidth": 0.8}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medfed",
    "text.parse_math": False,  # a class may be called $x$
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": INK["muted"],
    "axes.labelcolor": INK["ink"],
    "axes.titlecolor": INK["ink"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": INK["muted"],
    "ytick.color": INK["muted"],
    "xtick.labelcolor": INK["ink"],
    "ytick.labelcolor": INK["ink"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK["ink"],
    "figure.facecolor": INK["paper"],
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_SVG_OPEN = re.compile(r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>", re.DOTALL)
_PNG_DPI = 110
_PNG_LEVEL = 2  # four times as fast as the default, files a sixth larger
MAX_ROWS = 48
"""Most rows of a figure that has one for each site."""


@dataclass(frozen=True)
class Drawing:
    """One figure, drawn.

    Attributes:
        name: File name without ending.
        description: What it shows, for readers who cannot see it.
        svg: A file of its own.
        png: A file of its own.
        inline: The SVG as part of a page, in the page's colours.
        width_in: Its width, inches: the page shows all figures at one scale.
    """

    name: str
    description: str
    svg: bytes
    png: bytes
    inline: str
    width_in: float


def get_ready() -> None:
    """Import all that `draw` needs, which it does itself if nobody did before."""
    for name in ("figure", "backends.backend_agg", "backends.backend_svg"):
        import_module(f"matplotlib.{name}")


def draw(name: str, description: str, plot: Callable[[], "Figure | None"]) -> Drawing | None:
    """Run `plot` in the common style and render what it returns; None if there is nothing to show.

    The result has no date and no random identifier: the same data give the same bytes.
    """
    from matplotlib import rc_context

    with warnings.catch_warnings(), rc_context(_STYLE):
        # Names may hold letters that the PNG's font lacks; the page's own font shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = plot()
        if figure is None:
            return None
        png, svg = _render(figure)
    return Drawing(
        name=name,
        description=description,
        svg=svg,
        png=png,
        inline=_inline(name, svg.decode()),
        width_in=float(figure.get_figwidth()),
    )


def _render(figure: "Figure") -> tuple[bytes, bytes]:
    """Return the figure as PNG and SVG.

    By its canvases: `savefig` draws everything once more for each, without result.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    png, svg = io.BytesIO(), io.BytesIO()
    figure.set_dpi(_PNG_DPI)
    FigureCanvasAgg(figure).print_png(
        png, metadata={"Software": None}, pil_kwargs={"compress_level": _PNG_LEVEL}
    )
    # The layout stands; working it out again would take as long as drawing.
    figure.set_layout_engine("none")
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def new_figure(
    width: float, height: float, columns: int = 1, **options: Any
) -> "tuple[Figure, Any]":
    """Return a figure of `width` by `height` inches and its axes (an array if several)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns, **options)


def short(name: str, length: int = 18) -> str:
    """One line of at most `length` characters, for labels in a figure."""
    line = " ".join(name.split())
    # matplotlib hides whatever label starts with an underscore.
    line = "\u2009" + line if line.startswith("_") else line
    return line if len(line) <= length else line[: length - 1] + "…"


def some_of(values: Sequence[float]) -> tuple[list[int], str]:
    """Choose the rows of a figure that has one for each site: all, or some of very many.

    Returns:
        Positions in `values`, and what to write beside the axis: nothing where all are shown. Of
        more than `MAX_ROWS` they are those at even steps from the largest value to the smallest.
    """
    if len(values) <= MAX_ROWS:
        return list(range(len(values))), ""
    ranked = sorted(range(len(values)), key=lambda index: -values[index])
    step = (len(values) - 1) / (MAX_ROWS - 1)
    shown = [ranked[round(rank * step)] for rank in range(MAX_ROWS)]
    total = f"{len(values):,}".replace(",", "\u202f")
    return shown, f"{MAX_ROWS} of {total} sites, at even steps by rank"


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move `positions` apart, as little as needed, until neighbours lie at least `gap` apart."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[list[int]] = [[index] for index in order]

    def centre(group: list[int]) -> float:
        return sum(positions[index] for index in group) / len(group)

    merged = True
    while merged:
        merged = False
        for left, right in zip(range(len(groups) - 1), range(1, len(groups)), strict=True):
            need = gap * (len(groups[left]) + len(groups[right])) / 2
            if centre(groups[right]) - centre(groups[left]) < need - 1e-12:
                groups[left : right + 1] = [groups[left] + groups[right]]
                merged = True
                break
    moved = list(positions)
    for group in groups:
        for rank, index in enumerate(group):
            moved[index] = centre(group) + gap * (rank - (len(group) - 1) / 2)
    return moved


def label_ends(axes: "Axes", x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) to the right of `x`, moved apart so that none covers another."""
    low, high = axes.get_ylim()
    # A label needs 12.5 points; the layout will leave the panel about nine tenths of this.
    box = axes.get_window_extent()
    height_pt = 0.9 * box.height * 72 / axes.get_figure().dpi  # type: ignore[union-attr]
    placed = spread([y for y, _, _ in ends], (high - low) * 12.5 / height_pt)
    for (_, text, colour), y in zip(ends, placed, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
            fontweight="bold",
            fontsize=9,
        )


def whole_numbers(axis: "Axis") -> None:
    """Put ticks of `axis` at whole numbers only: rounds, images."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))


def _inline(name: str, svg: str) -> str:
    """Turn an SVG file into a part of a page: no prologue, unique identifiers, colours by name."""
    body = svg[svg.index("<svg ") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", body))

    def mend(tag: re.Match[str]) -> str:
        text = tag[0]
        text = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text
        )
        text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
        for colour, value in INK.items():
            text = text.replace(value, f"var(--{colour})")
        text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
        return text.replace("xlink:href", "href")

    # Inside tags only: names of classes and sites are text, where > is written &gt;.
    body = re.sub(r"<[^>]*>", mend, body)
    return _SVG_OPEN.sub(
        lambda m: f'<svg viewBox="{m[1]}" aria-hidden="true" focusable="false">', body, count=1
    )
