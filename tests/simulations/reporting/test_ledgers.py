"""What the report reads out of a site's ledger."""

from dataclasses import replace
from pathlib import Path

from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.ledger import Ledger, Spend
from medfed.simulations.reporting.ledgers import (
    LedgerCheck,
    LedgerFacts,
    check_ledgers,
    read_ledgers,
)

TRAINED = Spend(
    release="r",
    study="s",
    run="run",
    round_number=1,
    unit="patient",
    images_per_patient=4,
    noise_multiplier=1.5,
    sample_rate=0.1,
    steps=7,
    max_grad_norm=0.5,
    noise="seeded",
)
WORDS = replace(TRAINED, round_number=0, sample_rate=1.0, steps=1, kind="words", extra_delta=1e-6)


def test_ledger_facts_count_words_in_epsilon_and_not_in_steps() -> None:
    facts = LedgerFacts((WORDS, TRAINED, TRAINED))
    assert facts.steps == 14
    noise = [GaussianEvent(1.5, 1.0, 1), GaussianEvent(1.5, 0.1, 14)]
    assert facts.epsilon(1e-5) == epsilon(noise, 1e-5 - 1e-6)
    assert facts.epsilon(1e-5) > epsilon(noise[1:], 1e-5)


OPEN = replace(TRAINED, unit="none", noise="none", noise_multiplier=0.0, sample_rate=1.0)


def check(spends: tuple[Spend, ...], printed: dict[str, float]) -> LedgerCheck:
    (found,) = check_ledgers({"north": LedgerFacts(spends)}, printed, 1e-5)
    return found


def test_ledger_check_of_training_without_privacy_expects_no_epsilon() -> None:
    found = check((OPEN, OPEN), {})
    assert (found.agrees, found.verdict, found.recomputed) == (True, "without privacy", None)
    assert found.steps == 0
    claimed = check((OPEN, OPEN), {"north": 1.0})
    assert not claimed.agrees
    assert claimed.verdict == "no round to compare with"


def test_ledger_check_counts_private_entries_and_names_the_others() -> None:
    cost = epsilon([GaussianEvent(1.5, 1.0, 1, 1e-6)], 1e-5)
    found = check((WORDS, OPEN), {"north": cost})
    assert found.agrees
    assert found.verdict == "agrees; besides, 1 release without privacy"
    assert check((WORDS, TRAINED), {"north": cost}).verdict == (
        "differs: the ledger holds more (a round was charged and not recorded)"
    )


def test_ledger_of_a_site_that_was_late_holds_those_rounds_more_and_nothing_else() -> None:
    def late(spends: tuple[Spend, ...], printed: dict[str, float], number: int) -> LedgerCheck:
        rounds = {"north": frozenset({number})}
        (found,) = check_ledgers({"north": LedgerFacts(spends)}, printed, 1e-5, rounds)
        return found

    cost = check((WORDS,), {}).recomputed
    assert cost is not None
    number = TRAINED.round_number
    more = late((WORDS, TRAINED), {"north": cost}, number)
    assert (more.agrees, more.has_more) == (True, True)
    assert more.verdict == "agrees; besides, charged for 1 round that it did not answer in time"
    assert late((TRAINED,), {}, number).agrees
    # Of another round, or beside a charge that is not explained, it does not.
    assert not late((WORDS, TRAINED), {"north": cost}, number + 1).agrees
    assert not late((WORDS, TRAINED), {"north": cost / 2}, number).agrees
    assert not late((WORDS, TRAINED), {}, number).agrees
    less = late((WORDS,), {"north": 2 * cost}, number)
    assert less.verdict == "differs: the ledger holds less (entries are missing)"


def test_read_ledgers_names_the_damaged_entry_without_paths_and_makes_nothing(
    tmp_path: Path,
) -> None:
    state = tmp_path / "north" / "state"
    with Ledger(state).locked() as ledger:
        ledger.append(TRAINED)
        ledger.append(WORDS)
    assert read_ledgers(tmp_path)["north"] == LedgerFacts((TRAINED, WORDS))
    (state / "ledger.key").unlink()
    content = (state / "ledger.jsonl").read_bytes()
    (state / "ledger.jsonl").write_bytes(content.replace(b'"steps": 7', b'"steps": 6'))
    before = sorted(state.iterdir())
    (facts,) = read_ledgers(tmp_path).values()
    assert facts.problem.startswith("ledger.jsonl: entry 0 cannot be trusted")
    assert str(tmp_path) not in facts.problem
    (state / "ledger.pub").unlink()
    (facts,) = read_ledgers(tmp_path).values()
    assert facts.problem.startswith("ledger.pub cannot be read")
    assert sorted(state.iterdir()) == [path for path in before if path.name != "ledger.pub"]
