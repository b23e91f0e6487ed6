"""Whole rounds: the sum is exact whoever drops out when, and the server sees nothing else."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from medfed.client import secure as site_side
from medfed.common.errors import MessageError, RunError
from medfed.common.secure_sum import RoundContext, agreement, shamir, threshold_of, wire
from medfed.common.secure_sum.masking import Vector, add_masks, subtract_masks
from medfed.server.secure import SecureRound

KEYS, SHARES, MASKED, REVEALED, NEVER = 1, 2, 3, 4, 5
Change = Callable[[str, bytes], bytes]


def names_of(num: int) -> list[str]:
    return [f"site-{n}" for n in range(num)]


def context_of(num: int, share: float = 2 / 3) -> RoundContext:
    return RoundContext(
        study="d",
        run="r",
        round_number=1,
        num_participants=num,
        threshold=threshold_of(share, num),
    )


def vectors_of(num: int, size: int = 16, seed: int = 0) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {n: rng.integers(0, 2**32, size, dtype=np.uint32) for n in names_of(num)}


def unchanged(site: str, raw: bytes) -> bytes:
    return raw


class Conduct:
    """Plays all sites of one round; a site answers until the step at which it `drops` out.

    States go through bytes between the steps, as they do at a site.
    """

    def __init__(
        self, num: int, drops: Mapping[str, int] | None = None, share: float = 2 / 3
    ) -> None:
        self.vectors = vectors_of(num)
        self.context = context_of(num, share)
        self.round = SecureRound(self.context, names_of(num), 16)
        self.drops = drops or {}
        self.states: dict[str, site_side.SiteState] = {}
        self.masked: dict[str, Vector] = {}

    def stays(self, site: str, step: int) -> bool:
        return self.drops.get(site, NEVER) > step

    def keep(self, site: str, state: site_side.SiteState) -> None:
        self.states[site] = site_side.SiteState.from_bytes(state.to_bytes())

    def keys(self) -> None:
        for site in self.vectors:
            if self.stays(site, KEYS):
                state, answer = site_side.offer_keys(self.context, site)
                self.keep(site, state)
                self.round.on_keys(site, answer)

    def shares(self, change: Change = unchanged) -> None:
        roster = self.round.roster()
        for site, state in list(self.states.items()):
            if self.stays(site, SHARES):
                after, answer = site_side.share_secrets(state, roster)
                self.keep(site, after)
                self.round.on_shares(site, change(site, answer))

    def mask(self, site: str) -> Vector:
        vector = self.vectors[site].copy()
        self.keep(site, site_side.receive_shares(self.states[site], self.round.parcels(site)))
        self.keep(site, site_side.mask(self.states[site], vector))
        self.masked[site] = vector
        return vector

    def train(self) -> None:
        for site in sorted(self.round.sharers()):
            if self.stays(site, MASKED):
                self.round.on_masked(site, self.mask(site))

    def reveal(self, change: Change = unchanged) -> None:
        survivors = self.round.survivors()
        for site in sorted(self.round.summed):
            if self.stays(site, REVEALED):
                state, answer = site_side.reveal(self.states[site], survivors)
                self.keep(site, state)
                self.round.on_reveal(site, change(site, answer))

    def run(self) -> Vector:
        self.keys()
        self.shares()
        self.train()
        self.reveal()
        return self.round.result()

    def expected(self) -> Vector:
        total = np.zeros(16, dtype=np.uint32)
        for site in self.round.summed:
            total += self.vectors[site]
        return total


def check_round(num: int, steps: tuple[int, ...], share: float = 2 / 3) -> None:
    """The sum is exact if the threshold is met at every step; else the round is lost."""
    conduct = Conduct(num, dict(zip(names_of(num), steps, strict=True)), share)
    enough = all(
        sum(drop > step for drop in steps) >= conduct.context.threshold
        for step in (KEYS, SHARES, MASKED, REVEALED)
    )
    if enough:
        np.testing.assert_array_equal(conduct.run(), conduct.expected())
        masked = {s for s, d in zip(names_of(num), steps, strict=True) if d > MASKED}
        assert conduct.round.summed == masked
        assert not conduct.round.culprits
    else:
        with pytest.raises(RunError, match="are needed"):
            conduct.run()


@pytest.mark.parametrize("num", [2, 3])
def test_sum_is_exact_for_every_pattern_of_drop_out(num: int) -> None:
    for steps in itertools.product((KEYS, SHARES, MASKED, REVEALED, NEVER), repeat=num):
        check_round(num, steps)


def test_sum_is_exact_for_every_pattern_of_five_sites_down_to_three() -> None:
    for drops in itertools.product((KEYS, SHARES, MASKED, REVEALED), repeat=2):
        for who in itertools.combinations(range(5), 2):
            steps = [NEVER] * 5
            for index, step in zip(who, drops, strict=True):
                steps[index] = step
            check_round(5, tuple(steps), share=0.6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from((KEYS, SHARES, MASKED, REVEALED, *[NEVER] * 12)), min_size=2).filter(
        lambda steps: len(steps) <= 12
    ),
    st.sampled_from([0.51, 2 / 3, 0.9, 1.0]),
)
def test_sum_is_exact_or_the_round_is_lost(steps: list[int], share: float) -> None:
    check_round(len(steps), tuple(steps), share)


def test_sum_does_not_depend_on_the_order_of_arrival() -> None:
    conduct = Conduct(4)
    conduct.keys()
    conduct.shares()
    for site in sorted(conduct.round.sharers(), reverse=True):
        conduct.round.on_masked(site, conduct.mask(site))
    conduct.reveal()
    np.testing.assert_array_equal(conduct.round.result(), Conduct(4).run())


def looks_uniform(vector: Vector) -> bool:
    counts = [np.bincount(p, minlength=256) for p in vector.view(np.uint8).reshape(-1, 4).T]
    expected = vector.size / 256
    statistics = [float(np.sum((c - expected) ** 2 / expected)) for c in counts]
    return all(chi2.sf(s, 255) > 1e-9 for s in statistics)


def test_what_the_server_gets_from_a_site_is_uniform() -> None:
    size, num = 100_000, 4
    context = context_of(num)
    server = SecureRound(context, names_of(num), size)
    states, plain = {}, np.arange(size, dtype=np.uint32) % np.uint32(1000)
    assert not looks_uniform(plain)
    for site in names_of(num):
        states[site], answer = site_side.offer_keys(context, site)
        server.on_keys(site, answer)
    roster = server.roster()
    for site in names_of(num):
        states[site], answer = site_side.share_secrets(states[site], roster)
        server.on_shares(site, answer)
    server.sharers()
    masked = {}
    for site in names_of(num):
        masked[site] = plain.copy()
        agreed = site_side.receive_shares(states[site], server.parcels(site))
        site_side.mask(agreed, masked[site])
        assert looks_uniform(masked[site])
    for one, two in itertools.combinations(masked.values(), 2):
        assert looks_uniform(one - two)
        assert looks_uniform(one + two)
    # Even all but one together: what is missing is the last one's masks.
    assert looks_uniform(sum(list(masked.values())[1:], np.zeros(size, dtype=np.uint32)))


def test_vector_that_comes_late_stays_masked_though_its_mask_key_is_known() -> None:
    # The server said that the site had left, so it learns its mask key; then the vector arrives.
    conduct = Conduct(4, {"site-3": MASKED})
    conduct.keys()
    conduct.shares()
    conduct.train()
    late = conduct.mask("site-3")
    conduct.reveal()
    np.testing.assert_array_equal(conduct.round.result(), conduct.expected())
    with pytest.raises(MessageError, match="too late"):
        conduct.round.on_masked("site-3", late)
    state = conduct.states["site-3"]
    others = {n: k.mask for n, k in state.keys.items() if n != "site-3"}
    pairs = {
        n: agreement.pair_key(conduct.context, state.mask_key, k, "site-3", n)
        for n, k in others.items()
    }
    add_masks(late, list(pairs.values()))  # the last by name subtracts all it shares
    assert not np.array_equal(late, conduct.vectors["site-3"])
    # What is left is its own mask, whose seed nobody may reveal any more.
    subtract_masks(late, [agreement.self_key(conduct.context, state.seed, "site-3")])
    np.testing.assert_array_equal(late, conduct.vectors["site-3"])


def wrong_seed_share(raw: bytes, owner: str) -> bytes:
    answer = wire.Reveal.from_bytes(raw)
    share = bytes([*answer.seeds[owner][:-1], answer.seeds[owner][-1] ^ 1])
    return replace(answer, seeds={**answer.seeds, owner: share}).to_bytes()


def test_wrong_share_is_left_out_and_its_sender_named() -> None:
    conduct = Conduct(4)
    conduct.keys()
    conduct.shares()
    conduct.train()
    conduct.reveal(lambda s, raw: wrong_seed_share(raw, "site-0") if s == "site-2" else raw)
    np.testing.assert_array_equal(conduct.round.result(), conduct.expected())
    assert conduct.round.culprits == {"site-2"}


def test_round_is_lost_when_too_few_right_shares_are_left() -> None:
    conduct = Conduct(4, {"site-3": REVEALED})
    conduct.keys()
    conduct.shares()
    conduct.train()
    conduct.reveal(lambda s, raw: wrong_seed_share(raw, "site-0") if s == "site-2" else raw)
    with pytest.raises(RunError, match=r"3 right shares of site-0's self seed, got 2.*site-2"):
        conduct.round.result()


def other_secret_shared(conduct: Conduct, place: int) -> Change:
    """site-1 shares out another secret than its own, with commitments that fit the shares."""

    def change(site: str, raw: bytes) -> bytes:
        if site != "site-1":
            return raw
        state = conduct.states[site]
        shares = wire.Shares.from_bytes(raw)
        names = sorted(state.keys)
        other = shamir.split(bytes(32), conduct.context.threshold, len(names))
        what = (agreement.SEED, agreement.KEY)[place]
        parcels, commitments = dict(shares.parcels), dict(shares.share_commitments)
        for name, share in zip(names, other, strict=True):
            own = state.shares[site]  # the right kind and length for the half that stays
            both = tuple(share if i == place else own[i] for i in (0, 1))
            made = agreement.commit(conduct.context, what, share, site, name)
            pair = list(commitments[name])
            pair[place] = made
            commitments[name] = (pair[0], pair[1])
            if name == site:
                conduct.keep(site, replace(state, shares={site: (both[0], both[1])}))
            else:
                parcels[name] = agreement.seal_parcel(
                    conduct.context,
                    state.channel_key,
                    state.keys[name].channel,
                    site,
                    name,
                    (both[0], both[1]),
                )
        return replace(shares, parcels=parcels, share_commitments=commitments).to_bytes()

    return change


@pytest.mark.parametrize(
    ("place", "what", "drops"),
    [(0, "self seed", {}), (1, "mask key", {"site-1": MASKED})],
    ids=["self seed", "mask key"],
)
def test_site_that_shared_out_another_secret_is_named(
    place: int, what: str, drops: dict[str, int]
) -> None:
    conduct = Conduct(4, drops)
    conduct.keys()
    conduct.shares(other_secret_shared(conduct, place))
    conduct.train()
    conduct.reveal()
    with pytest.raises(RunError, match=f"site-1 shared out a {what}"):
        conduct.round.result()
    assert conduct.round.culprits == {"site-1"}


def test_answers_that_come_twice_or_unasked_are_refused() -> None:
    conduct = Conduct(3)
    _, answer = site_side.offer_keys(conduct.context, "site-0")
    conduct.round.on_keys("site-0", answer)
    for site in ("site-0", "stranger"):
        with pytest.raises(MessageError, match="not asked for"):
            conduct.round.on_keys(site, answer)
    with pytest.raises(MessageError, match="taken"):
        conduct.round.on_keys("site-1", answer)
    with pytest.raises(MessageError, match="not asked for"):
        conduct.round.on_masked("site-1", np.zeros(16, dtype=np.uint32))


@pytest.mark.parametrize(
    "vector",
    [np.zeros(15, np.uint32), np.zeros((4, 4), np.uint32), np.zeros(16, np.int32), np.zeros(16)],
    ids=["short", "square", "signed", "float"],
)
def test_masked_vector_of_another_form_is_refused_and_adds_nothing(vector: Vector) -> None:
    conduct = Conduct(3)
    conduct.keys()
    conduct.shares()
    conduct.round.sharers()
    with pytest.raises(MessageError, match="16 masked values"):
        conduct.round.on_masked("site-0", vector)
    for site in names_of(3):
        conduct.round.on_masked(site, conduct.mask(site))
    conduct.reveal()
    np.testing.assert_array_equal(conduct.round.result(), conduct.expected())


def test_shares_for_other_sites_than_the_round_has_are_refused() -> None:
    conduct = Conduct(3)
    conduct.keys()

    def without_one(site: str, raw: bytes) -> bytes:
        shares = wire.Shares.from_bytes(raw)
        rest = {n: p for n, p in shares.parcels.items() if n != "site-2"}
        return replace(shares, parcels=rest).to_bytes()

    with pytest.raises(MessageError, match="exactly the others"):
        conduct.shares(without_one)


def test_reveal_of_other_owners_is_refused() -> None:
    conduct = Conduct(4, {"site-3": MASKED})
    conduct.keys()
    conduct.shares()
    conduct.train()

    def both(site: str, raw: bytes) -> bytes:
        answer = wire.Reveal.from_bytes(raw)
        return replace(answer, seeds={**answer.seeds, **answer.keys}).to_bytes()

    with pytest.raises(MessageError, match="asked for"):
        conduct.reveal(both)
