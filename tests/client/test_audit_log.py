"""The audit log: a power cut costs no entry, a change is seen, and no free text gets in."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.client.audit_facts import REASONS, UNFIT, Fact, check_facts
from medfed.client.audit_lines import make_line
from medfed.client.audit_log import AuditLog, AuditLogError
from medfed.common.errors import RefusalReason
from medfed.common.ledger.chain import Link

ASKED: dict[str, Fact] = {
    "run": "ham-1/federated",
    "study": "ham10000",
    "kind": "train",
    "round_number": 7,
    "bytes": 1_234_567,
}


def write_some(log: AuditLog, count: int = 3) -> None:
    for number in range(count):
        log.write("asked", **{**ASKED, "round_number": number})


def lines_of(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def test_entries_read_back_in_order_and_hold(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "state")
    assert (log.entries(), log.verify()) == ([], 0)
    log.write("started", pid=12)
    log.write("asked", **ASKED)
    log.write("answered", **ASKED, seconds=41.5, epsilon=3.41)
    log.write("worker_died", code=-9)
    assert [entry.event for entry in log.entries()] == [
        "started",
        "asked",
        "answered",
        "worker_died",
    ]
    assert log.entries()[2].facts == {**ASKED, "seconds": 41.5, "epsilon": 3.41}
    assert [entry.index for entry in log.entries()] == [0, 1, 2, 3]
    assert log.verify() == 4
    assert AuditLog(tmp_path / "state").entries() == log.entries()


def test_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "state")
    mask = os.umask(0)
    try:
        log.write("started")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_every_reason_that_may_leave_has_words() -> None:
    assert {reason.value for reason in RefusalReason} <= set(REASONS)


@pytest.mark.parametrize(
    "facts",
    [
        {"patient": "Zyxwvut"},
        {"reason": "no image of Zyxwvut, MRN 4711"},
        {"reason": "zyxwvut"},
        {"reason": "/data/Zyxwvut/1.dcm"},
        {"version": "Zyxwvut"},
        {"address": "Zyxwvut"},
        {"address": "https://zyxwvut:8443/x"},
        {"fingerprint": "Zyxwvut Hans"},
        {"sha256": "1.2.840.10008.4711"},
        {"bytes": "Zyxwvut"},
        {"bytes": True},
        {"bytes": -1},
        {"bytes": 1.5},
        {"seconds": float("nan")},
        {"epsilon": float("inf")},
        {"epsilon": "Zyxwvut"},
        {"code": 4711},
    ],
)
def test_log_refuses_what_is_not_in_its_vocabulary(tmp_path: Path, facts: dict[str, Fact]) -> None:
    log = AuditLog(tmp_path)
    with pytest.raises(AuditLogError) as raised:
        log.write("failed", **facts)
    assert "yxwvut" not in str(raised.value)
    assert "4711" not in str(raised.value)
    assert log.entries() == []
    with pytest.raises(AuditLogError):
        log.write("zyxwvut")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("ham-1/federated", "ham-1/federated"),
        ("", None),
        ("../../etc/passwd", UNFIT),
        ("a\nb", UNFIT),
        ("x" * 200, UNFIT),
        ("Müller", UNFIT),
        (7, UNFIT),
    ],
)
def test_servers_word_that_does_not_fit_is_noted_as_such(
    tmp_path: Path, word: str, kept: str | None
) -> None:
    log = AuditLog(tmp_path)
    log.write("asked", run=word, kind="train")
    assert log.entries()[0].facts == ({"kind": "train"} | ({"run": kept} if kept else {}))


@given(st.dictionaries(st.sampled_from(["run", "study", "kind"]), st.text()))
def test_no_request_is_too_odd_to_be_noted(facts: dict[str, Fact]) -> None:
    checked = check_facts("asked", facts)
    assert all(value == UNFIT or value == facts[name] for name, value in checked.items())
    line, _ = make_line("asked", checked, Link())
    assert line.count(b"\n") == 1
    assert len(line) < 4096


@pytest.mark.parametrize("change", ["edit", "drop", "repeat", "swap", "insert", "cut time"])
def test_verify_names_the_line_that_cannot_be_trusted(tmp_path: Path, change: str) -> None:
    log = AuditLog(tmp_path)
    write_some(log, 5)
    lines = lines_of(log)
    if change == "edit":
        lines[2] = lines[2].replace(b'"round_number": 2', b'"round_number": 4')
    elif change == "drop":
        del lines[2]
    elif change == "repeat":
        lines.insert(2, lines[1])
    elif change == "swap":
        lines[2], lines[3] = lines[3], lines[2]
    elif change == "insert":
        lines.insert(2, b'{"event": "nothing"}\n')
    else:
        forged, _ = make_line("started", {}, Link(2, json.loads(lines[1])["hash"], ""))
        table = json.loads(forged)
        lines[2] = forged.replace(table["time"].encode(), b"2020-01-01T00:00:00.000+00:00")
    log.path.write_bytes(b"".join(lines))
    with pytest.raises(AuditLogError, match=r"line 3: entry 2 .*cannot be trusted") as raised:
        log.verify()
    assert raised.value.exit_code == 5
    # What can still be read is shown all the same.
    assert len(log.entries()) >= 4


def test_chain_is_checked_though_each_line_is_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    write_some(log, 2)
    [first, second] = lines_of(log)
    link = Link(0, "0" * 64, "")
    forged, _ = make_line("left", {}, link)
    log.path.write_bytes(forged + second)
    with pytest.raises(AuditLogError, match="line 2: entry 1"):
        log.verify()
    log.path.write_bytes(first + second)
    assert log.verify() == 2


def test_power_cut_at_any_byte_costs_no_other_entry(tmp_path: Path) -> None:
    whole = AuditLog(tmp_path / "whole")
    write_some(whole, 2)
    [first, second] = lines_of(whole)
    for size in (0, *range(1, len(second), 9), len(second) - 1):
        log = AuditLog(tmp_path / str(size))
        log.path.parent.mkdir()
        log.path.write_bytes(first + second[:size])
        assert len(log.entries()) == 1
        assert log.verify() == 1
        log.write("stopped")
        events = [entry.event for entry in log.entries()]
        if size in (0, len(second) - 1):  # nothing was begun, or only its line end is missing
            assert events == ["asked", *["asked"] * (size > 0), "stopped"]
            assert not (log.path.parent / "audit.torn").exists()
        else:
            assert events == ["asked", "mended", "stopped"]
            assert log.entries()[1].facts == {"bytes": size}
            assert (log.path.parent / "audit.torn").read_bytes() == second[:size] + b"\n"
        assert log.verify() == len(events)


def test_torn_first_line_is_set_aside(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.path.write_bytes(b'{"event": "sta')
    log.write("started")
    assert [entry.event for entry in log.entries()] == ["mended", "started"]
    assert log.verify() == 2


def test_damaged_last_line_stops_the_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    write_some(log)
    lines = lines_of(log)
    content = b"".join([*lines[:2], lines[2].replace(b"ham10000", b"ham10001")])
    log.path.write_bytes(content)
    with pytest.raises(AuditLogError, match=r"last line .* is damaged"):
        log.write("started")
    assert log.path.read_bytes() == content
    log.path.write_bytes(b"\0" * 20_000)
    with pytest.raises(AuditLogError, match="damaged"):
        log.write("started")


def test_clock_that_was_set_back_does_not_stop_the_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    line, _ = make_line("started", {}, Link(time="2999-01-01T00:00:00.000+00:00"))
    log.path.write_bytes(line)
    log.write("stopped")
    assert {entry.time for entry in log.entries()} == {"2999-01-01T00:00:00.000+00:00"}
    assert log.verify() == 2


def test_files_follow_one_another_and_the_chain_goes_through(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=1000)
    write_some(log, 20)
    names = [path.name for path in log.files()]
    assert names[:2] == ["audit.000001.jsonl", "audit.000002.jsonl"]
    assert names[-1] == "audit.jsonl"
    assert all(path.stat().st_size < 1500 for path in log.files())
    assert [entry.facts["round_number"] for entry in log.entries()] == list(range(20))
    assert log.verify() == 20
    # Renamed, and killed before the next file was begun.
    log.path.rename(tmp_path / f"audit.{len(names):06}.jsonl")
    log.write("started")
    assert log.verify() == 21
    (tmp_path / "audit.000002.jsonl").unlink()
    with pytest.raises(AuditLogError, match=r"audit.000003.jsonl, line 1"):
        log.verify()


def test_follower_gives_each_entry_once(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=1000)
    follower = log.follow()
    assert follower.news() == []
    seen: list[int] = []
    for number in range(30):
        log.write("asked", round_number=number)
        if number % 4 == 0:
            seen += [entry.index for entry in follower.news()]
    seen += [entry.index for entry in follower.news()]
    assert seen == list(range(30))
    with log.path.open("ab") as file:
        file.write(b'{"half')
    assert follower.news() == []
    log.write("stopped")
    assert [entry.event for entry in follower.news()] == ["mended", "stopped"]


def python(program: str, *arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


WRITER = """
    import sys
    from pathlib import Path
    from medfed.client.audit_log import AuditLog
    log = AuditLog(Path(sys.argv[1]), max_bytes=20_000)
    for number in range(int(sys.argv[3])):
        log.write("asked", run=sys.argv[2], round_number=number)
"""


def test_two_writers_do_not_break_the_chain(tmp_path: Path) -> None:
    writers = [python(WRITER, tmp_path, f"run-{n}", 200) for n in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    log = AuditLog(tmp_path)
    assert log.verify() == 400
    for n in range(2):
        mine = [e.facts["round_number"] for e in log.entries() if e.facts["run"] == f"run-{n}"]
        assert mine == list(range(200))


def test_kill_while_writing_loses_nothing_that_was_written(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    follower = log.follow()
    count = 0
    for attempt in range(2):
        writer = python(WRITER, tmp_path, f"run-{attempt}", 100_000)
        deadline = time.monotonic() + 60
        while len(fresh := follower.news()) < 20 and time.monotonic() < deadline:
            count += len(fresh)
            time.sleep(0.01)
        count += len(fresh)
        writer.send_signal(signal.SIGKILL)
        writer.wait(60)
        count += len(follower.news())
        log.write("worker_killed", reason="no sign of life")
        after = log.verify()
        # The writer's last line may have been torn, or may lack its end alone.
        assert after - count in (1, 2, 3)
        count += len(follower.news())
        assert count == after
    assert [entry.index for entry in log.entries()] == list(range(count))


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    from medfed.client.audit_log import AuditLog
    log = AuditLog(Path(sys.argv[1]))
    log.write("started")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = log.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    try:
        log.write("asked", run="run", round_number=1)
    except OSError:
        assert log.path.stat().st_size == size + 100
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.write("resumed")
    else:
        sys.exit("the write did not fail")
"""


def test_write_that_a_full_disk_cut_short_is_mended_by_the_next(tmp_path: Path) -> None:
    assert python(FULL_DISK, tmp_path).wait(60) == 0
    log = AuditLog(tmp_path)
    assert [entry.event for entry in log.entries()] == ["started", "mended", "resumed"]
    assert log.verify() == 3


def test_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditLogError, match="cannot be read"):
        AuditLog(tmp_path).entries()
