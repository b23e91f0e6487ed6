"""Words on pictures are the words that were given."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from medfed.client.data.lettering import lettering


def drawn(letter: str) -> np.ndarray:
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).text((4, 4), letter, fill=255, font=lettering(24))
    return np.asarray(picture)


@pytest.mark.parametrize("letter", ["ü", "ß", "é", "ł", "λ", "Ж"])
def test_a_letter_is_no_box(letter: str) -> None:
    # What no font has is drawn as the box of a letter that is not in Unicode either.
    assert (drawn(letter) != drawn("\uffff")).any()
    assert drawn(letter).any()
