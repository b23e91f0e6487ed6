"""What is said of files that cannot be read or written."""

import errno
import os
from pathlib import Path

import pytest
import typer

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


def test_ctrl_c_says_that_nothing_is_lost_unless_the_command_says_something_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def answered() -> None:
        try:
            interrupted()
        except KeyboardInterrupt:
            typer.echo("The run goes on.", err=True)
            raise typer.Exit(130) from None

    said = []
    for command in (interrupted, answered):
        app = typer.Typer()
        app.command()(command)
        monkeypatch.setattr("medfed.cli.app", app)
        monkeypatch.setattr("sys.argv", ["medfed"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 130
        said.append(capsys.readouterr().err)
    assert said == [
        "Stopped. Nothing is lost: run it again, or with --resume.\n", "The run goes on.\n",
    ]  # fmt: skip
