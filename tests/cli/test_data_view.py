"""`medfed data view`: a picture that only its owner may read."""

import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from lesions import command, make_store, run, write_study

from medfed.cli import data_view
from medfed.common.errors import DataError

app = command(data_view)


def test_sheet_is_a_picture_of_its_owner(tmp_path: Path) -> None:
    store, out = make_store(tmp_path / "stores"), tmp_path / "sheet.png"
    printed = run(app, "view", store, "--out", out, "--patients", "8")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert 1000 < picture.width < 2000
        assert f"{picture.width} x {picture.height} pixels" in printed
    assert out.stat().st_mode & 0o777 == 0o600
    assert b"Zyxwvut" not in out.read_bytes()
    first = out.read_bytes()
    run(app, "view", store, "--out", out, "--patients", "8")
    assert out.read_bytes() == first
    run(app, "view", store, "--out", out, "--patients", "8", "--seed", "1")
    assert out.read_bytes() != first


def test_study_for_which_the_store_is_not_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "stores")
    with pytest.raises(DataError, match="Prepare the data for this study"):
        run(app, "view", store, "--out", tmp_path / "x.png", "--study", write_study(tmp_path))


def test_place_that_cannot_be_written_and_no_store_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "stores")
    with pytest.raises(DataError, match="cannot be written"):
        run(app, "view", store, "--out", tmp_path / "nowhere" / "x.png")
    with pytest.raises(DataError, match="found none"):
        run(app, "view", tmp_path / "nothing", "--out", tmp_path / "x.png")
