"""The letters on pictures that we write: Pillow's own font has no ü, no Greek and no Cyrillic."""

from pathlib import Path

from PIL import ImageFont


def lettering(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib.

    It has no Chinese, Japanese or Korean: those letters are boxes.
    """
    import matplotlib as mpl

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size)
