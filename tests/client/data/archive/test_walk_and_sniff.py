"""What is listed of a folder, and what its files are told to be."""

import gzip
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfed.client.data.archive.inventory import Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.looking import look_at
from medfed.client.data.archive.sniffing import FileKind, sniff
from medfed.client.data.archive.walk import walk_files
from medfed.common.errors import DataError

LIMITS = ReadLimits()


def names(folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in walk_files(folder, LIMITS)
            if isinstance(path, Path)]  # fmt: skip


def troubles(folder: Path) -> dict[str, Unusable]:
    return {
        Path(one.path).name: one for one in walk_files(folder, LIMITS) if isinstance(one, Unusable)
    }


def test_walk_lists_files_by_name_whatever_order_they_were_made_in(tmp_path: Path) -> None:
    for name in ("b/2", "a/x/1", "c", "a/10", "B", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == [".hidden", "B", "a/10", "a/x/1", "b/2", "c"]


def test_walk_follows_no_link_and_names_each(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    inside = tmp_path / "archive"
    inside.mkdir()
    (inside / "real").touch()
    (inside / "to-file").symlink_to(tmp_path / "outside/secret")
    (inside / "to-folder").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to(inside)
    (inside / "broken").symlink_to("nowhere")
    assert names(inside) == ["real"]
    found = troubles(inside)
    assert {name: one.category for name, one in found.items()} == {
        "to-file": "refused",
        "to-folder": "refused",
        "broken": "refused",
        "loop": "not_an_image",
    }
    assert "out of the folder" in found["to-file"].reason


def test_walk_begins_at_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").touch()
    (tmp_path / "link").symlink_to("real")
    assert names(tmp_path / "link") == ["a"]


def test_walk_names_what_is_no_ordinary_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        assert {one.what for one in troubles(tmp_path).values()} == {"no ordinary file"}
        assert len(troubles(tmp_path)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_walk_names_a_folder_that_it_may_not_open(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "open").touch()
    assert "cannot be opened" in troubles(tmp_path)["closed"].reason
    assert names(tmp_path) == ["open"]


def test_walk_goes_deeper_than_python_recurses(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(400):
        here = here / "d"
        here.mkdir()
    (here / "file").touch()
    assert len(names(tmp_path)) == 1


def test_walk_stops_at_its_limit(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
    with pytest.raises(DataError, match="more than 4 files"):
        list(walk_files(tmp_path, ReadLimits(max_files=4)))


def test_walk_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected a folder"):
        list(walk_files(tmp_path / "none", LIMITS))


def test_names_of_other_encodings_are_listed_and_printable(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller\x1b[31m.dcm")
    (tmp_path / name).write_bytes(b"nothing")
    (found,) = walk_files(tmp_path, LIMITS)
    assert isinstance(found, Path)
    facts = look_at(str(found), LIMITS)
    assert isinstance(facts, Unusable)
    assert facts.path.encode().isascii()
    assert "M\\xfcller\\x1b[31m" in facts.reason
    assert printable(found) == facts.path


# The heads name the tests: without mtime=0, workers that collect in other seconds disagree.
NIFTI_1 = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(100)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", FileKind.EMPTY),
        (bytes(128) + b"DICM\2\0\0\0UL", FileKind.DICOM),
        (b"II*\0" + bytes(124) + b"DICM", FileKind.DICOM),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", FileKind.BARE_DICOM),
        (b"\0\x08\0\x05CS\0\x0aISO_IR 100", FileKind.BARE_DICOM),
        (b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", FileKind.BARE_DICOM),
        (NIFTI_1, FileKind.NIFTI),
        (NIFTI_1.replace(b"n+1", b"ni1"), FileKind.NIFTI_HEADER),
        (NIFTI_1.replace(b"n+1", bytes(3)), FileKind.ANALYZE),
        ((540).to_bytes(4, "big") + b"n+2\0\r\n\x1a\n" + bytes(600), FileKind.NIFTI),
        (gzip.compress(NIFTI_1, mtime=0), FileKind.NIFTI),
        (gzip.compress(b"\0\0\0\1\0\0\1\0\0\0\1\0\0\0\1\0\0\0\0\1\0\0\0\3" + bytes(400), mtime=0),
         FileKind.MGH),
        (gzip.compress(b"hello", mtime=0), FileKind.OTHER),
        (b"\x89PNG\r\n\x1a\n", FileKind.PNG),
        (b"\xff\xd8\xff\xe0", FileKind.JPEG),
        (b"MM\0*", FileKind.TIFF),
        (b"PK\3\4", FileKind.OTHER),
        (b"PatientID,Label\n1,2\n", FileKind.OTHER),
        (bytes(500), FileKind.OTHER),
    ],
)  # fmt: skip
def test_sniff_tells_files_by_content(head: bytes, kind: FileKind) -> None:
    assert sniff(head).kind is kind


def test_names_do_not_decide(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "a.png")
    for name in ("a.dcm", "b.nii.gz", "c"):
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
        facts = look_at(str(tmp_path / name), LIMITS)
        assert not isinstance(facts, Unusable)
        assert facts[2] == "PNG"


def test_a_file_that_becomes_a_link_or_vanishes_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name, what in (("link", "cannot be opened"), ("gone", "vanished")):
        facts = look_at(str(tmp_path / name), LIMITS)
        assert isinstance(facts, Unusable)
        assert facts.what == what
