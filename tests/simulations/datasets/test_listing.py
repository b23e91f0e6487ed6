"""A data set of tens of thousands of images is listed without decoding one."""

import sys
from pathlib import Path
from typing import NoReturn

import pytest
from nibabel.arrayproxy import ArrayProxy
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import layouts_other


@pytest.mark.parametrize("name", layouts_other.CASES)
def test_loader_lists_without_decoding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = layouts_other.CASES[name]
    case.write(tmp_path)
    expected = case.load(tmp_path)

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("decoded while listing")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(ArrayProxy, "__array__", refuse)
    dataset = case.load(tmp_path)
    assert dataset.digest == expected.digest
    assert len(dataset.records) == len(expected.records) > 0
    # The tripwire is where readers pass.
    with pytest.raises(AssertionError, match="decoded while listing"):
        dataset.records[0].read_image()
