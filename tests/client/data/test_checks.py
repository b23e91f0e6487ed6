"""What is said of a data set of which nothing can be used."""

import pytest

from medfed.client.data.checks import check_records
from medfed.client.data.records import SourceDataset, UnusableSource
from medfed.common.errors import DataError
from medfed.common.study import DataSection, TaskSection

STACK = "A NIfTI volume in a study of images. Set data.dimensions = 3 in the study."


def dataset_of(*unusable: UnusableSource) -> SourceDataset:
    return SourceDataset(
        name="head scans",
        licence="own",
        citation="",
        classes=("a", "b"),
        records=(),
        digest="0" * 64,
        unusable=unusable,
    )


def test_the_reasons_that_most_files_have_are_told_not_the_first() -> None:
    others = [UnusableSource(f"{n}.txt", f"{n}.txt: text file") for n in range(9)]
    stacks = [UnusableSource(f"{n}.nii", STACK) for n in range(4)]
    with pytest.raises(DataError) as caught:
        check_records(dataset_of(*others, *stacks), TaskSection(classes=("a", "b")), DataSection())
    lines = str(caught.value).splitlines()
    assert "None of the 13 files of head scans" in lines[0]
    assert lines[1] == f"  4 x {STACK}"
    # A few of the others are examples; not all of a thousand.
    assert len(lines) == 6


def test_an_empty_folder_is_named() -> None:
    with pytest.raises(DataError, match="head scans holds no images"):
        check_records(dataset_of(), TaskSection(classes=("a", "b")), DataSection())
