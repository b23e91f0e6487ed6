from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.common.errors import UnreadableImageError
from medfed.simulations.datasets.pictures import list_pictures, read_mask, read_picture, refuse


def test_read_picture_leaves_equal_channels_as_they_are(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", "L"), grey)


def test_read_picture_leaves_transparency_out(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 4), dtype=np.uint8)
    pixels[..., 0] = 200  # and fully transparent
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert tuple(read_picture(tmp_path / "a.png", "RGB")[0, 0]) == (200, 0, 0)


def test_read_picture_refuses_more_than_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="8 bits a channel, got mode I;16"):
        read_picture(tmp_path / "a.png", "L")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_read_mask_is_1_where_it_is_bright_in_any_mode(tmp_path: Path, mode: str) -> None:
    mask = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)
    Image.fromarray(mask).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask // 255)


def test_read_mask_cuts_at_half(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[0, 0, 1, 1]])


def test_list_pictures_sorts_and_skips_other_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "._a.jpg", "a.txt", "c.tif"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.jpg", "b.PNG", "c.tif"]


def test_refuse_raises_its_reason() -> None:
    with pytest.raises(UnreadableImageError, match=r"^because$"):
        refuse("because")
