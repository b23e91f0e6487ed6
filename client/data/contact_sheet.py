"""A sheet of stored images to look at: what training will see, with labels and masks.

It shows patients' images: it is for this hospital's own eyes.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medfed.client.data.lettering import lettering
from medfed.client.data.panels import COLORS, draw_panels
from medfed.client.data.store import Store
from medfed.common.errors import DataError
from medfed.common.seeding import numpy_rng

IMAGES_PER_PATIENT = 4
# Eight pictures, or three volumes of three slices, fill a line.
_PANEL, _SLICE = 160, 148
_GAP = 10
_WIDTH = 1400
_LINE = 16
_FONT_SIZE = 12
_INK, _FAINT, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)
_REPORT_LINES = 4

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Card:
    """One image with its panels and what is written below them."""

    panels: list[tuple[str, Image.Image]]
    lines: list[str]

    @property
    def width(self) -> int:
        return max(_PANEL, sum(panel.width + 2 for _, panel in self.panels))

    @property
    def height(self) -> int:
        return max(panel.height for _, panel in self.panels) + _LINE * len(self.lines) + 4


def choose_patients(store: Store, num_patients: int, seed: int) -> list[str]:
    """Return patients to show: the same ones every time, and some of every class if they suffice.

    Args:
        store: The store.
        num_patients: How many; fewer if there are fewer.
        seed: Other patients for another seed.
    """
    order = sorted(set(store.patients))
    numpy_rng(seed, "contact sheet").shuffle(order)
    place = {patient: number for number, patient in enumerate(order)}
    firsts = []
    for index in range(len(store.classes)):
        rows = _rows_of_class(store, index)
        if len(rows):
            firsts.append(min({store.patients[row] for row in rows}, key=place.__getitem__))
    chosen = list(dict.fromkeys([*firsts, *order]))[:num_patients]
    return sorted(chosen, key=place.__getitem__)


def contact_sheet(
    store: Store, *, num_patients: int, seed: int, sides: Sequence[str] | None = None
) -> Image.Image:
    """Draw some patients' images, at most IMAGES_PER_PATIENT of each.

    Args:
        store: The store.
        num_patients: How many patients.
        seed: Other patients for another seed.
        sides: Side of the split by row; the official one if left out.

    Raises:
        DataError: The store holds no image.
    """
    if not len(store):
        raise DataError(f"{store.folder} holds no image. Prepare it again.")
    font = lettering(_FONT_SIZE)
    cards = []
    for patient in choose_patients(store, num_patients, seed):
        rows = [row for row, owner in enumerate(store.patients) if owner == patient]
        for row in rows[:IMAGES_PER_PATIENT]:
            side = (sides or store.splits)[row]
            cards.append(_card(store, row, side, len(rows), font))
    lines = _broken(cards)
    head = _head(store)
    heights = [max(card.height for card in line) for line in lines]
    top = _GAP * 2 + _LINE * (len(head) + bool(store.masks_NHW is not None))
    width = max(_WIDTH, *(card.width + 2 * _GAP for card in cards))
    sheet = Image.new("RGB", (width, top + sum(heights) + _GAP * (len(lines) + 1)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_head(pen, store, head, font)
    for line, height in zip(lines, heights, strict=True):
        left = _GAP
        for card in line:
            _paste(sheet, pen, card, left, top, font)
            left += card.width + _GAP
        top += height + _GAP
    return sheet


def _rows_of_class(store: Store, index: int) -> list[int]:
    labels = store.labels
    shown = labels == index if store.one_label else labels[:, index] > 0
    return [int(row) for row in np.flatnonzero(shown)]


def _card(store: Store, row: int, side: str, num_images: int, font: _Font) -> _Card:
    panels = draw_panels(store, row, _SLICE if store.images_NCHW.ndim == 5 else _PANEL)
    indices = [int(store.labels[row])] if store.one_label else np.flatnonzero(store.labels[row])
    shown = ", ".join(store.classes[int(index)] for index in indices) or "none"
    facts = [store.patients[row][:8], f"row {row}", side]
    if num_images > IMAGES_PER_PATIENT:
        facts.append(f"of {num_images}")
    lines = ["  ".join(fact for fact in facts if fact)]
    width = max(_PANEL, sum(panel.width + 2 for _, panel in panels))
    letters = max(10, int(width / font.getlength("n")))
    lines += textwrap.wrap(shown, letters, max_lines=2, placeholder=" ...")
    if store.reports[row]:
        report = store.reports[row]
        lines += textwrap.wrap(report, letters, max_lines=_REPORT_LINES, placeholder=" ...")
    if any(name for name, _ in panels):
        lines.insert(0, ", ".join(name for name, _ in panels))
    return _Card(panels, lines)


def _broken(cards: Sequence[_Card]) -> list[list[_Card]]:
    """Break cards into lines of the sheet."""
    lines: list[list[_Card]] = [[]]
    left = _GAP
    for card in cards:
        if lines[-1] and left + card.width + _GAP > _WIDTH:
            lines.append([])
            left = _GAP
        lines[-1].append(card)
        left += card.width + _GAP
    return lines


def _head(store: Store) -> list[str]:
    patients = len(set(store.patients))
    counts = [f"{name} {len(_rows_of_class(store, n)):,}" for n, name in enumerate(store.classes)]
    shape = " x ".join(str(side) for side in store.images_NCHW.shape[1:])
    facts = [
        f"{len(store):,} images of {patients:,} patients",
        f"stored {shape}",
        f"{store.num_quarantined:,} set aside" if store.num_quarantined else "",
    ]
    text = f"{store.dataset or store.folder.name}: {'; '.join(fact for fact in facts if fact)}"
    letters = (_WIDTH - 2 * _GAP) // 7
    more = textwrap.wrap(f"{store.task}: {', '.join(counts)}", letters, max_lines=3)
    if store.images_NCHW.ndim == 5:
        more.append(
            "Volumes: slices through the middle, or where most of the mask is. The patient's right "
            "(sagittal: front) is on the left."
        )
    return [text, *more]


def _draw_head(pen: ImageDraw.ImageDraw, store: Store, head: Sequence[str], font: _Font) -> None:
    top = _GAP
    for number, text in enumerate(head):
        pen.text((_GAP, top), text, fill=_FAINT if number else _INK, font=font)
        top += _LINE
    if store.masks_NHW is None:
        return
    left = float(_GAP)
    for name, color in zip(store.classes, COLORS, strict=False):
        pen.rectangle((left, top + 3, left + 10, top + 11), fill=color, outline=_INK)
        pen.text((left + 15, top), name, fill=_INK, font=font)
        left += 30 + font.getlength(name)


def _paste(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, card: _Card, left: int, top: int, font: _Font
) -> None:
    place = left
    for _, panel in card.panels:
        sheet.paste(panel, (place, top))
        place += panel.width + 2
    below = top + max(panel.height for _, panel in card.panels) + 2
    for number, line in enumerate(card.lines):
        ink = _FAINT if number == 0 and card.panels[0][0] else _INK
        pen.text((left, below + _LINE * number), line, fill=ink, font=font)
