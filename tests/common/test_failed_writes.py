"""What cannot be written leaves nothing behind, and the command says why."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medfed import cli
from medfed.common.files import write_atomically, write_secret


@pytest.mark.parametrize("write", [write_atomically, write_secret])
def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    taken = tmp_path / "taken"
    (taken / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write(taken, b"half of a picture")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_the_command_says_which_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "none" / "unusable.jsonl"
    monkeypatch.setattr(
        "sys.argv", ["medfed", "data", "scan", str(tmp_path), "--unusable", str(out)]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 3
    said = capsys.readouterr().err
    assert "No such file or directory" in said
    assert "Traceback" not in said
