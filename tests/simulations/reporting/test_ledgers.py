"""What the report reads out of a site's ledger."""

from dataclasses import replace

from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.ledger import Spend
from medfed.simulations.reporting.ledgers import LedgerFacts

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
