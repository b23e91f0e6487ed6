"""What is said of files that cannot be read or written."""

import errno
import os
from pathlib import Path

import pytest

from medfed.cli import main
from medfed.common.errors import StudyError, reason, way_out
from medfed.common.study_file import load_study


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ENOSPC, "room"),
        (errno.EACCES, "account"),
        (errno.ENOENT, "path"),
        (errno.EISDIR, "name a file"),
        (errno.EIO, "another"),
    ],
)
def test_way_out_follows_what_is_wrong(number: int, word: str) -> None:
    error = OSError(number, os.strerror(number), "file")
    assert word in way_out(error)
    assert reason(error) == f"{os.strerror(number)}. {way_out(error)}"
    assert "Errno" not in reason(error)


def test_reason_of_other_errors_is_one_sentence() -> None:
    assert reason(ValueError("No data left.")) == "No data left."
    assert reason(EOFError()) == "EOFError."
    with pytest.raises(UnicodeDecodeError) as caught:
        b"ab\xff".decode()
    assert reason(caught.value).startswith("byte 3 is no UTF-8.")


@pytest.mark.parametrize("what", ["a file before it", "not text"])
def test_study_file_that_is_none_says_the_way_out(tmp_path: Path, what: str) -> None:
    file = tmp_path / "study.toml"
    file.write_bytes(b"\x89PNG")
    named = file / "study.toml" if what == "a file before it" else file
    with pytest.raises(StudyError, match=r"cannot be read: .*(mend the path|name another file)"):
        load_study(named)


def test_command_that_cannot_write_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(__file__).parents[2] / "studies" / "rehearsal.toml"
    (tmp_path / "file").write_text("")
    words = ["medfed", "simulate", str(study), "--out", str(tmp_path / "file" / "run")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "Not a directory. A file stands where the path has a folder" in capsys.readouterr().err
