"""`medfed site ledger`: shows, verifies and copies; makes, mends and leaks nothing."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medfed.cli.site_ledger import ledger_app
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.errors import LedgerError, MedfedError, RunError, SiteConfigError
from medfed.common.ledger import Ledger, ServerKey, Spend, read_ledger
from medfed.common.ledger.countersigning import read_countersignatures

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
WORDS = replace(SPEND, round_number=0, kind="words", sample_rate=1.0, steps=1, extra_delta=1e-7)
FREE = replace(SPEND, unit="none", noise="none", noise_multiplier=0.0)

Command = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `medfed site ledger ARGUMENTS` and return what it printed; errors come through."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> str:
        capsys.readouterr()
        ledger_app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(
        'name = "north"\n[data]\nstores = ["store"]\n[policy]\nmax_epsilon = 3.0\n'
        "target_delta = 1e-5\n"
    )
    return path


@pytest.fixture
def state(site: Path) -> Path:
    """Words and three rounds, two of them countersigned."""
    folder = site.parent / "state"
    key = ServerKey.load_or_make(site.parent / "server.key")
    ledger = Ledger(folder)
    with ledger.locked() as locked:
        locked.append(WORDS)
        entries = [locked.append(replace(SPEND, round_number=number)) for number in (1, 2, 3)]
    for number, entry in enumerate(entries[:2], start=1):
        signed = key.sign(run="run-1", site="north", round_number=number, head=entry.hash)
        ledger.keep_countersignature(signed)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil(state: Path) -> None:
    path = state / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round_number": 2', b'"round_number": 4'))


def test_show_lists_entries_and_what_is_left(command: Command, site: Path, state: Path) -> None:
    table = json.loads(command("show", site, "--json"))
    events = [GaussianEvent(1.5, 1.0, 1, 1e-7), GaussianEvent(1.5, 0.1, 21)]
    costs = [epsilon([events[0], GaussianEvent(1.5, 0.1, 7 * n)], 1e-5) for n in (1, 2, 3)]
    assert [row["epsilon_after"] for row in table["entries"]] == [
        epsilon(events[:1], 1e-5),
        *costs,
    ]
    assert [row["kind"] for row in table["entries"]] == ["words", *["training"] * 3]
    assert [row["round_number"] for row in table["entries"]] == [0, 1, 2, 3]
    assert (table["site"], table["unit"], table["target_delta"]) == ("north", "patient", 1e-5)
    assert table["epsilon"] == costs[-1]
    assert table["max_epsilon"] == 3.0
    text = command("show", site)
    assert f"{costs[0]:.4f}" in text
    assert f"ε {costs[-1]:.4f} per patient spent of 3 at δ 1e-05" in text
    assert f"{max(0.0, 3 - costs[-1]):.4f} left" in text


def test_show_last_counts_what_it_leaves_out(command: Command, site: Path, state: Path) -> None:
    every = json.loads(command("show", site, "--json", "--last", 0))
    two = json.loads(command("show", site, "--json", "--last", 2))
    assert two["entries"] == every["entries"][2:]
    assert two["num_entries"] == 4
    assert "2 earlier ones" in command("show", site, "--last", 2)


def test_show_of_a_long_ledger_accounts_where_stretches_end(command: Command, site: Path) -> None:
    with Ledger(site.parent / "state").locked() as locked:
        for number in range(1, 121):
            locked.append(replace(SPEND, run=f"run-{(number - 1) // 60}", round_number=number))
    rows = json.loads(command("show", site, "--json", "--last", 0))["entries"]
    assert [row["index"] for row in rows if "epsilon_after" in row] == [59, 119]
    assert rows[59]["epsilon_after"] == epsilon([GaussianEvent(1.5, 0.1, 420)], 1e-5)
    assert len(command("show", site, "--last", 0).splitlines()) > 120


def test_show_states_no_finite_epsilon_after_training_without_privacy(
    command: Command, site: Path, state: Path
) -> None:
    with Ledger(state).locked() as locked:
        locked.append(FREE)
    table = json.loads(command("show", site, "--json"))
    assert table["epsilon"] == table["entries"][-1]["epsilon_after"] == "infinite"
    assert isinstance(table["entries"][-2]["epsilon_after"], float)
    assert table["releases_without_privacy"] == 1
    text = command("show", site)
    assert "ε ∞: some releases had no privacy" in text
    assert "left" not in text


def test_show_of_a_site_that_never_trained_makes_nothing(command: Command, site: Path) -> None:
    assert "nothing was spent" in command("show", site)
    table = json.loads(command("show", site, "--json"))
    assert (table["entries"], table["epsilon"]) == ([], 0.0)
    for words in (["verify", site], ["export", site, site.parent / "out"]):
        with pytest.raises(LedgerError, match="found none"):
            command(*words)
    assert [path.name for path in site.parent.iterdir()] == ["site.toml"]


def test_verify_names_the_entry_and_ends_with_five(
    command: Command, site: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = json.loads(command("verify", site, "--json"))
    assert (table["trusted"], table["entries"], table["countersignatures"]) == (True, 4, 2)
    assert "4 entries, chain and signatures hold; 2 countersign" in command("verify", site)
    spoil(state)
    before = contents(state)
    for words in (["verify", site], ["show", site]):
        with pytest.raises(LedgerError, match="entry 2 cannot be trusted") as raised:
            command(*words)
        assert raised.value.exit_code == 5
    with pytest.raises(LedgerError, match="entry 2 cannot be trusted"):
        command("verify", site, "--json")
    table = json.loads(capsys.readouterr().out)
    assert not table["trusted"]
    assert "entry 2" in table["problems"][0]
    assert contents(state) == before


def test_verify_finds_what_only_the_coordinator_saw(
    command: Command, site: Path, state: Path
) -> None:
    # Cut with its seal: a genuine chain that is too short.
    path = state / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    (state / "ledger.seal").unlink()
    assert len(read_ledger(state).entries) == 2
    with pytest.raises(LedgerError, match="round 2 of run run-1: the ledger lacks the entry"):
        command("verify", site)
    with pytest.raises(LedgerError, match="round 2 of run run-1: the ledger lacks the entry"):
        command("export", site, site.parent / "out")


def test_verify_finds_countersignatures_of_another_key(
    command: Command, site: Path, state: Path
) -> None:
    other = ServerKey.load_or_make(site.parent / "other.key")
    (state / "coordinator.pub").write_text(other.public_key + "\n")
    with pytest.raises(LedgerError, match=f"coordinator.pub holds {other.public_key}"):
        command("verify", site)
    (state / "coordinator.pub").unlink()
    with pytest.raises(LedgerError, match="holds none"):
        command("verify", site)


def test_torn_line_is_named_and_left(
    command: Command, site: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (state / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event": {"ex')
    before = contents(state)
    for words in ("show", "verify"):
        ledger_app([words, str(site)], standalone_mode=False)
        assert "last line is torn (14 bytes" in capsys.readouterr().err
        assert json.loads(command(words, site, "--json"))["torn_bytes"] == 14
    assert contents(state) == before


def test_commands_change_nothing_and_need_no_key(command: Command, site: Path, state: Path) -> None:
    for name in ("ledger.key", "ledger.lock"):
        (state / name).unlink()
    before = contents(state)
    command("show", site)
    command("verify", site)
    command("export", site, site.parent / "out")
    assert contents(state) == before


def test_export_holds_what_an_auditor_needs_and_no_key(
    command: Command, site: Path, state: Path
) -> None:
    out = site.parent / "exports" / "north"
    assert "4 entries" in command("export", site, out)
    assert {path.name for path in out.iterdir()} == {
        *("ledger.jsonl", "ledger.pub", "countersignatures.jsonl", "coordinator.pub"),
        "facts.json",
    }
    assert all(b"PRIVATE" not in content for content in contents(out).values())
    assert json.loads((out / "facts.json").read_text()) == {
        "site": "north",
        "target_delta": 1e-5,
        "max_epsilon": 3.0,
        "unit": "patient",
    }
    assert read_ledger(out).entries == Ledger(state).entries()
    assert len(read_countersignatures(out / "countersignatures.jsonl")) == 2
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((out / "ledger.jsonl").stat().st_mode) == 0o666 & ~mask
    before = contents(out)
    with pytest.raises(RunError, match="holds something already"):
        command("export", site, out)
    assert contents(out) == before


def test_export_of_a_damaged_ledger_is_made_for_the_inquiry_and_fails(
    command: Command, site: Path, state: Path
) -> None:
    spoil(state)
    out = site.parent / "out"
    with pytest.raises(LedgerError, match="entry 2 cannot be trusted"):
        command("export", site, out)
    assert (out / "ledger.jsonl").read_bytes() == (state / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("words", [["show"], ["verify"], ["export"]])
def test_command_of_a_missing_site_file_says_so(
    command: Command, tmp_path: Path, words: list[Any]
) -> None:
    out = [tmp_path / "out"] if words == ["export"] else []
    with pytest.raises(SiteConfigError, match="nowhere") as raised:
        command(*words, tmp_path / "nowhere.toml", *out)
    assert isinstance(raised.value, MedfedError)
    assert not any(tmp_path.iterdir())
