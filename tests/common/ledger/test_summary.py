"""The summary costs what its entries cost, in any order and however it was put together."""

import math
import random
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from medfed.common.accounting import GaussianEvent, compose, epsilon
from medfed.common.ledger import Ledger, Spend, Summary

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
    noise="secure",
)
WORDS = replace(TRAINED, kind="words", sample_rate=1, steps=1, extra_delta=1e-7)
SITE = replace(TRAINED, unit="site", noise="none", sample_rate=1.0, steps=1)
SUMS = replace(SITE, noise="secure", mechanism="discrete_gaussian")
FREE = replace(TRAINED, unit="none", noise="none", noise_multiplier=0.0)
SPENDS = st.lists(
    st.builds(
        lambda spend, steps, extra, noise: replace(
            spend, steps=steps, extra_delta=extra, noise_multiplier=noise
        ),
        st.sampled_from([TRAINED, WORDS, SITE, SUMS, FREE]),
        st.integers(1, 50),
        st.sampled_from([0.0, 1e-7, 3e-8, 0.1]),
        st.sampled_from([0.7, 1.5]),
    ),
    max_size=30,
)


@given(SPENDS, st.integers(0, 30), st.randoms(use_true_random=False))
def test_summary_composes_what_its_spends_do(
    spends: list[Spend], cut: int, rng: random.Random
) -> None:
    whole = Summary.of(spends)
    events = [spend.event for spend in spends if spend.event is not None]
    ours, theirs = compose(whole.events), compose(events)
    assert [replace(e, extra_delta=0.0) for e in ours] == [
        replace(e, extra_delta=0.0) for e in theirs
    ]
    # Each group's part of delta is rounded once, so sums of them differ in the last digit.
    assert all(
        math.isclose(one.extra_delta, other.extra_delta, rel_tol=1e-14)
        for one, other in zip(ours, theirs, strict=True)
    )
    assert whole.extra_delta == math.fsum(spend.extra_delta for spend in spends)
    assert whole.num_entries == len(spends)
    assert whole.units == {spend.unit for spend in spends}
    assert whole.without_privacy == any(spend.unit == "none" for spend in spends)
    assert Summary.of(spends[:cut]).plus(*spends[cut:]) == whole
    shuffled = rng.sample(spends, len(spends))
    assert Summary.of(shuffled).events == whole.events


def test_summary_tells_units_apart() -> None:
    summary = Summary.of([TRAINED, TRAINED, SITE, SUMS, FREE])
    assert summary.events_of("patient") == (GaussianEvent(1.5, 0.1, 14),)
    assert [event.mechanism for event in summary.events_of("site")] == [
        "gaussian",
        "discrete_gaussian",
    ]
    assert summary.events_of("record", "none") == ()
    assert summary.plus() == summary


def test_summary_survives_the_seal_to_the_last_bit(tmp_path: Path) -> None:
    spends = [replace(WORDS, extra_delta=1e-7 * number / 3) for number in range(1, 8)]
    spends += [TRAINED, FREE, SUMS, replace(TRAINED, noise_multiplier=math.pi)]
    for spend in spends:
        with Ledger(tmp_path).locked() as ledger:
            ledger.append(spend)
    with Ledger(tmp_path).locked() as ledger:
        assert ledger.summary == Summary.of(spends)
        events = [spend.event for spend in spends[:7] if spend.event is not None]
        cost = epsilon(events, 1e-5)
        assert epsilon(Summary.of(spends[:7]).events, 1e-5) == cost
