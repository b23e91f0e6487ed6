"""The ledger: whole, ordered, signed; damage is found; a crash or a race loses no entry.

Cutting whole entries off the end is not found by the ledger alone: every prefix of a valid chain is
a valid chain. The seal finds it (test_seal.py) where whoever cut left it alone, the coordinator's
countersignature of the head in any case (test_countersigning.py).
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, tzinfo
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

from medfed.client.site import SiteConfig
from medfed.client.spending import charge
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import LedgerError, RefusalReason, SiteRefusal
from medfed.common.ledger import GENESIS, Ledger, Spend, read_ledger, verify

SPEND = Spend(
    release="r" * 64,
    study="5" * 64,
    run="run-1",
    round_number=1,
    unit="patient",
    images_per_patient=4,
    noise_multiplier=1.5,
    sample_rate=0.1,
    steps=7,
    max_grad_norm=0.5,
    noise="secure",
)


def spend(round_number: int) -> Spend:
    return replace(SPEND, round_number=round_number, steps=round_number + 1)


def write_ledger(folder: Path, count: int) -> Ledger:
    ledger = Ledger(folder)
    with ledger.locked() as locked:
        for number in range(count):
            locked.append(spend(number))
    return ledger


def lines_of(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def rounds_of(ledger: Ledger) -> list[int]:
    return [entry.spend.round_number for entry in ledger.entries()]


def assert_untrusted(ledger: Ledger) -> None:
    """Neither reading nor spending goes on, and the file is left as it was for the inquiry."""
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError):
        Ledger(ledger.folder).entries()
    with pytest.raises(LedgerError), Ledger(ledger.folder).locked():
        pass
    assert ledger.path.read_bytes() == before


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ledger(tmp_path_factory.mktemp("pristine"), 6).folder


@pytest.fixture
def six(pristine: Path, tmp_path: Path) -> Ledger:
    return Ledger(Path(shutil.copytree(pristine, tmp_path / "ledger")))


def test_ledger_returns_what_was_written(tmp_path: Path) -> None:
    assert Ledger(tmp_path).entries() == ()
    written = []
    for number in range(3):
        with Ledger(tmp_path).locked() as locked:
            assert [e.spend for e in locked.entries] == [spend(n) for n in range(number)]
            written.append(locked.append(spend(number)))
            assert locked.entries == written
    entries = Ledger(tmp_path).entries()
    assert list(entries) == written
    assert [e.index for e in entries] == [0, 1, 2]
    assert entries[2].spend.event == GaussianEvent(1.5, 0.1, 3)


def test_ledger_tells_words_from_training_and_states_their_delta(tmp_path: Path) -> None:
    words = replace(SPEND, round_number=0, sample_rate=1.0, steps=1, kind="words", extra_delta=1e-6)
    with Ledger(tmp_path).locked() as locked:
        locked.append(words)
        locked.append(spend(1))
    first, second = Ledger(tmp_path).entries()
    assert (first.spend, second.spend) == (words, spend(1))
    assert first.spend.event == GaussianEvent(1.5, 1.0, 1, 1e-6)
    assert (second.spend.kind, second.spend.event.extra_delta) == ("training", 0.0)
    tables = [json.loads(line)["event"] for line in lines_of(Ledger(tmp_path))]
    assert [(t["kind"], t["extra_delta"]) for t in tables] == [("words", 1e-6), ("training", 0.0)]


def test_ledger_finds_a_words_entry_that_was_made_cheaper(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ledger.locked() as locked:
        locked.append(replace(SPEND, kind="words", extra_delta=1e-6))
    content = ledger.path.read_bytes()
    for old, new in ((b"1e-06", b"1e-09"), (b'"words"', b'"other"')):
        ledger.path.write_bytes(content.replace(old, new))
        assert ledger.path.read_bytes() != content
        assert_untrusted(ledger)


def test_ledger_counts_training_without_privacy_at_no_finite_epsilon(tmp_path: Path) -> None:
    free = replace(
        SPEND, unit="none", noise="none", noise_multiplier=0.0, sample_rate=1.0, max_grad_norm=0.0
    )
    with Ledger(tmp_path).locked() as locked:
        locked.append(spend(1))
        assert not locked.summary.without_privacy
        locked.append(free)
        assert locked.summary.without_privacy
        assert locked.summary.events == (GaussianEvent(1.5, 0.1, 2),)
    entries = Ledger(tmp_path).entries()
    assert [entry.spend for entry in entries] == [spend(1), free]
    assert entries[1].spend.event is None


def test_ledger_reads_entries_from_before_kind_and_mechanism(tmp_path: Path) -> None:
    ledger = write_ledger(tmp_path, 1)
    table = json.loads(lines_of(ledger)[0])
    for name in ("kind", "extra_delta", "mechanism"):
        del table["event"][name]
    key = load_pem_private_key((tmp_path / "ledger.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    (tmp_path / "ledger.seal").unlink()
    ledger.path.write_bytes(forge(json.dumps(table).encode(), key))
    assert [entry.spend for entry in ledger.entries()] == [spend(0)]
    with ledger.locked() as locked:
        assert locked.has(spend(0))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"unit": "hospital"}, "unit"),
        ({"unit": None}, "unit"),
        ({"noise": "quiet"}, "noise"),
        ({"kind": "other"}, "kind"),
        ({"mechanism": "laplace"}, "mechanism"),
        ({"mechanism": "discrete_gaussian"}, "sample_rate"),  # without sampling only
        ({"unit": "none"}, "noise"),  # claims noise
        ({"noise": "none"}, "noise"),  # claims privacy
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"steps": -1}, "steps"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"noise_multiplier": 0}, "noise_multiplier"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier"),
        ({"noise_multiplier": "1.5"}, "noise_multiplier"),
        ({"extra_delta": -1e-6}, "extra_delta"),
        ({"extra_delta": 2}, "extra_delta"),
        ({"round_number": -1}, "round_number"),
        ({"release": 7}, "release"),
        ({"note": "free"}, "note"),
    ],
)
def test_ledger_refuses_an_entry_whose_values_mean_nothing(
    six: Ledger, values: dict[str, object], reason: str
) -> None:
    # Signed by the site itself: the site's own key must not pass what cannot be accounted.
    key = load_pem_private_key((six.folder / "ledger.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    lines = lines_of(six)
    six.path.write_bytes(b"".join([*lines[:5], forge(lines[5], key, **values)]))
    with pytest.raises(LedgerError, match=rf"entry 5 cannot be trusted: .*{reason}"):
        six.entries()
    assert_untrusted(six)
    if "note" not in values:
        with pytest.raises(ValueError, match=reason):
            replace(SPEND, **values)  # type: ignore[arg-type]


class Clock(datetime):
    """A clock that a test sets."""

    moment = datetime(2026, 11, 23, 22, tzinfo=UTC)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return cls.moment


def test_ledger_time_never_decreases_though_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.common.ledger.chain.datetime", Clock)
    ledger = Ledger(tmp_path)
    for minutes in (0, -60, 1):
        monkeypatch.setattr(
            Clock, "moment", datetime(2026, 11, 23, 22, tzinfo=UTC) + timedelta(minutes=minutes)
        )
        with ledger.locked() as locked:
            locked.append(spend(0))
    assert [entry.time for entry in ledger.entries()] == [
        "2026-11-23T22:00:00.000+00:00",
        "2026-11-23T22:00:00.000+00:00",
        "2026-11-23T22:01:00.000+00:00",
    ]


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        ("2020-01-01T00:00:00.000+00:00", "before that of the entry before it"),
        ("2099-01-01T00:00:00.000+01:00", "not UTC in milliseconds"),
        ("2099-01-01T00:00:00.000Z", "not UTC in milliseconds"),
        ("2099-01-01T00:00:00+00:00", "not UTC in milliseconds"),
        ("2099-01-01", "not UTC in milliseconds"),
        ("soon", "soon"),
        (7, "str"),
    ],
)
def test_ledger_finds_an_entry_that_its_own_key_dated_back(
    six: Ledger, time: object, reason: str
) -> None:
    key = load_pem_private_key((six.folder / "ledger.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    lines = lines_of(six)
    dated = forge(edited(lines[5], time=time), key)
    six.path.write_bytes(b"".join([*lines[:5], dated]))
    with pytest.raises(LedgerError, match=rf"entry 5 cannot be trusted: .*{reason}"):
        six.entries()
    assert_untrusted(six)


def test_locked_ledger_has_only_what_is_equal_in_every_field(six: Ledger) -> None:
    with six.locked() as locked:
        assert all(locked.has(spend(number)) for number in range(6))
        for other in (
            spend(7),
            replace(spend(3), steps=5),
            replace(spend(3), noise="seeded"),
            replace(spend(3), release='r"'),
        ):
            assert not locked.has(other)
        quoted = replace(spend(7), release='"release": "' + SPEND.release)
        locked.append(quoted)
        locked.append(spend(8))
        assert locked.has(quoted)
        assert locked.has(spend(8))
    with six.locked() as locked:
        assert locked.has(quoted)
        assert locked.has(spend(8))
        assert not locked.has(spend(7))


def test_locked_ledger_names_its_head(tmp_path: Path) -> None:
    with Ledger(tmp_path).locked() as locked:
        assert locked.head == GENESIS
        assert locked.append(spend(0)).hash == locked.head
    with Ledger(tmp_path).locked() as locked:
        assert locked.head == locked.entries[-1].hash


def test_locked_ledger_appends_nothing_after_an_append_that_failed(
    six: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    with six.locked() as locked:
        with monkeypatch.context() as patch:
            patch.setattr("medfed.common.files.os.fsync", fail)
            with pytest.raises(OSError, match="disk full"):
                locked.append(spend(6))
        with pytest.raises(LedgerError, match="Open it again"):
            locked.append(spend(7))
    # The line reached the file: it counts, and the next one follows it.
    with six.locked() as locked:
        locked.append(spend(8))
    assert rounds_of(six) == [*range(7), 8]


def test_ledger_chains_each_entry_to_the_one_before(six: Ledger) -> None:
    tables = [json.loads(line) for line in lines_of(six)]
    assert [t["previous"] for t in tables] == [GENESIS, *(t["hash"] for t in tables[:-1])]


def test_ledger_is_verified_by_its_published_key_alone(six: Ledger) -> None:
    public = load_pem_public_key((six.folder / "ledger.pub").read_bytes())
    assert verify(lines_of(six), public, "copy") == six.entries()  # type: ignore[arg-type]


def test_ledger_keeps_its_key_to_its_owner(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ledger = write_ledger(tmp_path / "state", 1)
    finally:
        os.umask(old)
    assert stat.S_IMODE((ledger.folder / "ledger.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert b"PRIVATE" not in (ledger.folder / "ledger.pub").read_bytes()


def test_ledger_finds_every_change_of_one_byte(six: Ledger) -> None:
    content = six.path.read_bytes()
    rng = random.Random(20)
    # The line ends are where a change could pass for a torn line: all of them, besides 200 others.
    ends = [position for position, byte in enumerate(content) if byte == ord("\n")]
    for position in [*ends, *(rng.randrange(len(content)) for _ in range(200))]:
        value = rng.choice([b for b in range(256) if b != content[position]])
        six.path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
        assert_untrusted(six)
    six.path.write_bytes(content)
    assert rounds_of(six) == list(range(6))


def test_ledger_finds_every_change_of_one_bit_in_the_last_line_end(six: Ledger) -> None:
    content = six.path.read_bytes()
    for bit in range(8):
        six.path.write_bytes(content[:-1] + bytes([content[-1] ^ (1 << bit)]))
        assert_untrusted(six)


def forge(line: bytes, key: Ed25519PrivateKey, **event: object) -> bytes:
    """The line with a changed event, its hash right, signed by `key`."""
    table = json.loads(line)
    table["event"] |= event
    body = {name: table[name] for name in ("index", "previous", "time", "event")}
    table["hash"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    table["signature"] = key.sign(bytes.fromhex(table["hash"])).hex()
    return (json.dumps(table, sort_keys=True) + "\n").encode()


def edited(line: bytes, **values: object) -> bytes:
    return (json.dumps({**json.loads(line), **values}, sort_keys=True) + "\n").encode()


Tamper = Callable[[list[bytes]], list[bytes]]
TAMPERINGS: dict[str, Tamper] = {
    "first removed": lambda lines: lines[1:],
    "middle removed": lambda lines: lines[:2] + lines[3:],
    "swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
    "last two swapped": lambda lines: [*lines[:4], lines[5], lines[4]],
    "duplicated": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "last duplicated": lambda lines: [*lines, lines[-1]],
    "blank line": lambda lines: [*lines[:3], b"\n", *lines[3:]],
    "spaces": lambda lines: [lines[0].replace(b": ", b":  "), *lines[1:]],
    "cut within an earlier line": lambda lines: [*lines[:2], lines[2][:40] + b"\n", *lines[3:]],
    "index edited": lambda lines: [edited(lines[0], index=7), *lines[1:]],
    "time edited": lambda lines: [
        *lines[:5],
        edited(lines[5], time="2020-01-01T00:00:00"),
    ],
    "field added": lambda lines: [*lines[:5], edited(lines[5], note="free")],
    "fewer steps": lambda lines: [
        *lines[:5],
        edited(lines[5], event=asdict(replace(spend(5), steps=1))),
    ],
    "signature in capitals": lambda lines: [
        *lines[:5],
        edited(lines[5], signature=json.loads(lines[5])["signature"].upper()),
    ],
    "signature with a space": lambda lines: [
        *lines[:5],
        edited(lines[5], signature=json.loads(lines[5])["signature"] + " "),
    ],
    "not an object": lambda lines: [*lines, b"[1, 2]\n"],
    "a number": lambda lines: [*lines, b"7\n"],
    "event not an object": lambda lines: [*lines[:5], edited(lines[5], event=None)],
    "not text": lambda lines: [*lines, b"\xff\xfe\n"],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_ledger_finds_tampering(six: Ledger, name: str) -> None:
    tampered = b"".join(TAMPERINGS[name](lines_of(six)))
    assert tampered != six.path.read_bytes()
    six.path.write_bytes(tampered)
    assert_untrusted(six)


def test_ledger_finds_an_entry_signed_by_another_key(six: Ledger) -> None:
    lines = lines_of(six)
    forged = forge(lines[5], Ed25519PrivateKey.generate(), steps=1)
    six.path.write_bytes(b"".join([*lines[:5], forged]))
    with pytest.raises(LedgerError, match="entry 5 cannot be trusted: its signature is not"):
        six.entries()
    assert_untrusted(six)


def test_ledger_finds_a_whole_chain_of_another_key(six: Ledger, tmp_path: Path) -> None:
    other = write_ledger(tmp_path / "other", 6)
    shutil.copy(other.path, six.path)
    assert_untrusted(six)


def test_ledger_finds_the_end_of_another_history_of_the_same_key(
    six: Ledger, tmp_path: Path
) -> None:
    # A backup restored and carried on: both histories are genuine, their mixture is not.
    cheap = Ledger(Path(shutil.copytree(six.folder, tmp_path / "cheap")))
    cheap.path.write_bytes(b"".join(lines_of(cheap)[:3]))
    (cheap.folder / "ledger.seal").unlink()  # of the longer history: it would be found at once
    with cheap.locked() as locked:
        for number in (3, 4, 5):
            locked.append(replace(spend(number), steps=1))
    six.path.write_bytes(b"".join([*lines_of(six)[:4], *lines_of(cheap)[4:]]))
    assert_untrusted(six)
    (six.folder / "ledger.seal").unlink()
    assert_untrusted(six)


def test_ledger_error_names_the_first_bad_entry_and_the_way_out(six: Ledger) -> None:
    lines = lines_of(six)
    six.path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with pytest.raises(LedgerError, match=r"entry 3 .* Restore the ledger from a backup"):
        six.entries()


def test_ledger_refuses_when_its_key_is_gone_or_another(six: Ledger, tmp_path: Path) -> None:
    key = six.folder / "ledger.key"
    content = key.read_bytes()
    key.unlink()
    with pytest.raises(LedgerError, match="Restore the key"):
        Ledger(six.folder)
    assert not key.exists()
    key.write_bytes(b"")
    with pytest.raises(LedgerError, match="not a readable key"):
        Ledger(six.folder)
    key.write_bytes((Ledger(tmp_path / "other").folder / "ledger.key").read_bytes())
    assert_untrusted(six)
    key.write_bytes(content)
    assert rounds_of(six) == list(range(6))


def test_ledger_refuses_when_it_cannot_be_read(six: Ledger) -> None:
    six.path.unlink()
    six.path.mkdir()
    with pytest.raises(LedgerError, match="cannot be read"), six.locked():
        pass


def test_ledger_sets_a_torn_line_aside_and_loses_nothing_else(six: Ledger) -> None:
    content = six.path.read_bytes()
    last = lines_of(six)[-1]
    cuts = [1, 2, 40, len(last) // 2, len(last) - 3, len(last) - 2]
    for number, cut in enumerate(cuts, start=1):
        six.path.write_bytes(content + last[:cut])
        with pytest.raises(LedgerError, match="torn line after entry 5"):
            Ledger(six.folder).entries()
        with Ledger(six.folder).locked() as locked:
            assert len(locked.entries) == 6
        assert six.path.read_bytes() == content
        aside = (six.folder / "ledger.torn").read_bytes().splitlines()
        assert len(aside) == number
        assert aside[-1] == last[:cut]
    with Ledger(six.folder).locked() as locked:
        locked.append(spend(6))
    assert rounds_of(six) == list(range(7))


def test_ledger_keeps_a_last_entry_that_lacks_its_line_end_only(six: Ledger) -> None:
    content = six.path.read_bytes()
    six.path.write_bytes(content[:-1])
    with Ledger(six.folder).locked() as locked:
        assert len(locked.entries) == 6
        locked.append(spend(6))
    assert six.path.read_bytes().startswith(content)
    assert rounds_of(six) == list(range(7))


def test_ledger_starts_anew_after_a_torn_first_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.path.write_bytes(b'{"event": {"im')
    with ledger.locked() as locked:
        locked.append(spend(0))
    assert rounds_of(ledger) == [0]


MAX_EPSILON = 3.0


def _site(folder: Path) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "name": "one",
            "data": {"stores": ["store"]},
            "policy": {"max_epsilon": MAX_EPSILON, "target_delta": 1e-5},
            "folder": folder,
        }
    )


def _charge_rounds(folder: Path, worker: int, count: int, start: Barrier) -> None:
    charged = 0
    start.wait()
    for number in range(1, count + 1):
        try:
            charge(_site(folder), replace(SPEND, run=f"worker-{worker}", round_number=number))
            charged += 1
        except SiteRefusal as refusal:
            if refusal.reason is not RefusalReason.BUDGET:
                raise
            break
    (folder / f"charged-{worker}").write_text(str(charged))


def test_processes_cannot_overspend_together(tmp_path: Path) -> None:
    affordable = 0
    while epsilon([SPEND.event] * (affordable + 1), 1e-5) <= MAX_EPSILON:
        affordable += 1
    workers = 4
    # Alone, each could afford everything; together they ask for twice what there is.
    count = affordable // 2 + 1
    assert count > 2
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers)
    processes = [
        context.Process(target=_charge_rounds, args=(tmp_path, worker, count, start))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    entries = Ledger(_site(tmp_path).state_folder).entries()
    charged = [int((tmp_path / f"charged-{worker}").read_text()) for worker in range(workers)]
    assert len(entries) == sum(charged) == affordable
    assert len({(e.spend.run, e.spend.round_number) for e in entries}) == affordable


def _open_and_append(folder: Path, number: int, start: Barrier) -> None:
    start.wait()
    with Ledger(folder).locked() as locked:
        locked.append(spend(number))


def test_processes_that_make_a_ledger_at_once_make_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        start = context.Barrier(8)
        processes = [
            context.Process(target=_open_and_append, args=(folder, number, start))
            for number in range(8)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert sorted(rounds_of(Ledger(folder))) == list(range(8))


APPENDING = """
import json
import sys
from pathlib import Path
from medfed.common.ledger import Ledger, Spend

spend = Spend(**json.loads(sys.argv[2]))
number = 0
while True:
    with Ledger(Path(sys.argv[1])).locked() as ledger:
        ledger.append(spend)
    number += 1
    print(number, flush=True)
"""


def test_ledger_keeps_every_completed_entry_when_killed(tmp_path: Path) -> None:
    rng = random.Random(3)
    folder = tmp_path / "state"
    completed = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDING, str(folder), json.dumps(asdict(SPEND))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        reports = rng.randrange(1, 40)
        for _ in range(reports):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        # What it still managed to say before it died counts too.
        rest = process.stdout.read().split("\n")
        process.stdout.close()
        process.wait()
        completed += reports + sum(1 for line in rest[:-1] if line)
        # As the files lie, wherever between entry and seal it was killed.
        assert completed <= len(read_ledger(folder).entries) <= completed + 1
        with Ledger(folder).locked() as locked:
            # One more may have been written without being reported.
            assert completed <= len(locked.entries) <= completed + 1
            completed = len(locked.entries)
    assert len(Ledger(folder).entries()) == completed
