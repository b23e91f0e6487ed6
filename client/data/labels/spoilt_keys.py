"""Keys that a spreadsheet spoilt: zeros dropped, decimals added, digits rounded away."""

import re
from collections.abc import Callable, Iterable


def suggestion_for(cells: Iterable[str], finds: Callable[[str], bool]) -> list[str]:
    """Return what a spreadsheet did to keys that match nothing.

    Args:
        cells: Such keys.
        finds: Whether a key means an image.
    """
    zeros, decimals, shortened = 0, 0, 0
    width = 0
    for cell in cells:
        if re.fullmatch(r"\d+(?:[.,]\d+)?[Ee]\+?\d+", cell):
            shortened += 1
        elif re.fullmatch(r"\d+[.,]0+", cell) and finds(re.split(r"[.,]", cell)[0]):
            decimals += 1
        elif cell.isdecimal():
            fits = next((n for n in range(len(cell) + 1, 17) if finds(cell.zfill(n))), 0)
            zeros, width = zeros + bool(fits), max(width, fits)
    said: list[str] = []
    if zeros:
        said.append(
            f"{zeros:,} keys would match with leading zeros, which a spreadsheet drops: set "
            f"key_width = {width}, or export ids as text"
        )
    if decimals:
        said.append(f"{decimals:,} keys would match without their decimals: export ids as text")
    if shortened:
        said.append(
            f"{shortened:,} keys look like 1.23E+05: a spreadsheet shortened them and digits are "
            "lost; export ids as text from where they come from"
        )
    return said
