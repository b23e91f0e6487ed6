"""A site's side of secure aggregation: what it says no to, whatever the server says."""

from dataclasses import replace

import numpy as np
import pytest

from medfed.client.secure import (
    SiteState,
    mask,
    offer_keys,
    receive_shares,
    reveal,
    share_secrets,
)
from medfed.common.errors import MessageError, SiteRefusal
from medfed.common.secure_sum import RoundContext, agreement, shamir, wire

NAMES = ("ash", "birch", "cedar", "dogwood")
CONTEXT = RoundContext(study="d", run="r", round_number=3, num_participants=4, threshold=3)


def roster_of(keys: dict[str, bytes]) -> bytes:
    return wire.pack_roster({name: wire.PublicKeys.from_bytes(raw) for name, raw in keys.items()})


def offered(context: RoundContext = CONTEXT) -> tuple[dict[str, SiteState], bytes]:
    states, keys = {}, {}
    for name in NAMES:
        states[name], keys[name] = offer_keys(context, name)
    return states, roster_of(keys)


def shared(context: RoundContext = CONTEXT) -> tuple[dict[str, SiteState], dict[str, wire.Shares]]:
    states, roster = offered(context)
    shares = {}
    for name in NAMES:
        states[name], raw = share_secrets(states[name], roster)
        shares[name] = wire.Shares.from_bytes(raw)
    return states, shares


def parcels_for(name: str, shares: dict[str, wire.Shares], **changes: bytes) -> bytes:
    parcels = {sender: s.parcels[name] for sender, s in shares.items() if sender != name}
    return wire.pack_parcels({**parcels, **changes})


def masked() -> tuple[dict[str, SiteState], dict[str, np.ndarray]]:
    states, shares = shared()
    vectors = {name: np.full(20, i, dtype=np.uint32) for i, name in enumerate(NAMES)}
    for name in NAMES:
        states[name] = receive_shares(states[name], parcels_for(name, shares))
        states[name] = mask(states[name], vectors[name])
    return states, vectors


def test_state_survives_a_round_trip_at_every_step() -> None:
    states, _ = offered()
    state = states["ash"]
    assert SiteState.from_bytes(state.to_bytes()) == state
    states, shares = shared()
    state = states["ash"]
    assert SiteState.from_bytes(state.to_bytes()) == state
    state = receive_shares(state, parcels_for("ash", shares))
    assert SiteState.from_bytes(state.to_bytes()) == state
    assert state.num_sharers == 4
    state = mask(state, np.zeros(3, dtype=np.uint32))
    assert SiteState.from_bytes(state.to_bytes()) == state
    state, _ = reveal(state, wire.pack_names(set(NAMES)))
    assert SiteState.from_bytes(state.to_bytes()) == state


def test_no_step_can_be_taken_twice_or_out_of_order() -> None:
    states, roster = offered()
    vector = np.zeros(4, dtype=np.uint32)
    everyone = wire.pack_names(set(NAMES))
    with pytest.raises(SiteRefusal, match="step after"):
        receive_shares(states["ash"], b"{}")
    with pytest.raises(SiteRefusal, match="step after"):
        mask(states["ash"], vector)
    with pytest.raises(SiteRefusal, match="step after"):
        reveal(states["ash"], everyone)
    states, shares = shared()
    with pytest.raises(SiteRefusal, match="step after"):
        share_secrets(states["ash"], roster)
    with pytest.raises(SiteRefusal, match="step after"):
        mask(states["ash"], vector)
    agreed = receive_shares(states["ash"], parcels_for("ash", shares))
    with pytest.raises(SiteRefusal, match="step after"):
        receive_shares(agreed, parcels_for("ash", shares))
    after = mask(agreed, vector)
    before = vector.copy()
    # A second vector under the same masks would tell the difference of the two.
    with pytest.raises(SiteRefusal, match="step after"):
        mask(after, vector)
    np.testing.assert_array_equal(vector, before)
    done, _ = reveal(after, everyone)
    with pytest.raises(SiteRefusal, match="step after"):
        reveal(done, everyone)
    assert (done.seed, done.mask_key, done.channel_key, done.shares) == (b"", b"", b"", {})


def test_reveal_gives_one_kind_of_share_for_each_owner() -> None:
    states, _ = masked()
    _, raw = reveal(states["ash"], wire.pack_names({"ash", "birch", "dogwood"}))
    answer = wire.Reveal.from_bytes(raw)
    assert set(answer.seeds) == {"ash", "birch", "dogwood"}
    assert set(answer.keys) == {"cedar"}


@pytest.mark.parametrize(
    "survivors",
    [{"ash", "birch"}, {"birch", "cedar", "dogwood"}, {"ash", "birch", "elm"}, set()],
    ids=["fewer than the threshold", "without this site", "a stranger", "nobody"],
)
def test_reveal_refuses_lists_that_would_betray_someone(survivors: set[str]) -> None:
    states, _ = masked()
    with pytest.raises(SiteRefusal, match="stayed"):
        reveal(states["ash"], wire.pack_names(survivors))


def test_two_stories_about_one_site_do_not_give_both_its_secrets() -> None:
    # Half of the sites are told that ash stayed, the others that it left. With a threshold of more
    # than half neither half has enough shares.
    states, _ = masked()
    seeds, keys = {}, {}
    for number, name in enumerate(NAMES, start=1):
        stayed = {"ash", "birch", "cedar", "dogwood"} if name in ("ash", "birch") else set(NAMES)
        if name in ("cedar", "dogwood"):
            stayed -= {"ash"}
        answer = wire.Reveal.from_bytes(reveal(states[name], wire.pack_names(stayed))[1])
        if "ash" in answer.seeds:
            seeds[number] = answer.seeds["ash"]
        if "ash" in answer.keys:
            keys[number] = answer.keys["ash"]
    assert len(seeds) == len(keys) == 2 < CONTEXT.threshold


@pytest.mark.parametrize("kept", [("ash", "birch"), ("ash",)])
def test_too_few_sites_are_refused_before_any_secret_is_shared(kept: tuple[str, ...]) -> None:
    keys, states = {}, {}
    for name in NAMES:
        states[name], keys[name] = offer_keys(CONTEXT, name)
    with pytest.raises(SiteRefusal, match="offered keys"):
        share_secrets(states["ash"], roster_of({name: keys[name] for name in kept}))


def test_more_sites_than_were_asked_are_refused() -> None:
    keys, states = {}, {}
    for name in (*NAMES, "elm"):
        states[name], keys[name] = offer_keys(CONTEXT, name)
    with pytest.raises(SiteRefusal, match="offered keys"):
        share_secrets(states["ash"], roster_of(keys))


def test_exchanged_own_keys_are_noticed() -> None:
    states, keys = {}, {}
    for name in NAMES:
        states[name], keys[name] = offer_keys(CONTEXT, name)
    keys["ash"] = offer_keys(CONTEXT, "ash")[1]
    with pytest.raises(SiteRefusal, match="own"):
        share_secrets(states["ash"], roster_of(keys))
    del keys["ash"]
    with pytest.raises(SiteRefusal, match="own"):
        share_secrets(states["ash"], roster_of(keys))


def test_one_key_for_two_sites_is_refused() -> None:
    states, keys = {}, {}
    for name in NAMES:
        states[name], keys[name] = offer_keys(CONTEXT, name)
    keys["cedar"] = keys["birch"]
    with pytest.raises(MessageError, match="twice"):
        share_secrets(states["ash"], roster_of(keys))


def test_key_of_low_order_is_refused() -> None:
    # X25519 with the point 0 or 1 gives a secret that everyone knows.
    states, keys = {}, {}
    for name in NAMES:
        states[name], keys[name] = offer_keys(CONTEXT, name)
    good = wire.PublicKeys.from_bytes(keys["cedar"])
    keys["cedar"] = replace(good, channel=bytes(32)).to_bytes()
    with pytest.raises(MessageError, match="low order"):
        share_secrets(states["ash"], roster_of(keys))


def test_fewer_sharers_than_the_threshold_are_refused() -> None:
    states, shares = shared()
    few = wire.pack_parcels({"birch": shares["birch"].parcels["ash"]})
    with pytest.raises(SiteRefusal, match="2 sites shared"):
        receive_shares(states["ash"], few)


def test_changed_parcel_is_found_at_every_byte() -> None:
    states, shares = shared()
    parcel = shares["birch"].parcels["ash"]
    for place in range(len(parcel)):
        changed = parcel[:place] + bytes([parcel[place] ^ 1]) + parcel[place + 1 :]
        with pytest.raises(MessageError, match="birch"):
            receive_shares(states["ash"], parcels_for("ash", shares, birch=changed))


def test_parcels_of_others_or_for_others_do_not_open() -> None:
    states, shares = shared()
    for wrong in (
        shares["cedar"].parcels["ash"],  # another sender's
        shares["birch"].parcels["cedar"],  # for another receiver
        shares["ash"].parcels["birch"],  # the other way round
        b"",
        bytes(12),
    ):
        with pytest.raises(MessageError, match="birch"):
            receive_shares(states["ash"], parcels_for("ash", shares, birch=wrong))
    with pytest.raises(MessageError, match="others"):
        receive_shares(states["ash"], parcels_for("ash", shares, elm=b""))
    with pytest.raises(MessageError, match="others"):
        receive_shares(states["ash"], parcels_for("ash", shares, ash=b""))


def test_parcel_opens_in_its_own_round_only() -> None:
    private, public = agreement.new_key(), agreement.public_key
    other = agreement.new_key()
    both = (bytes(shamir.SHARE_BYTES), bytes(shamir.SHARE_BYTES))
    parcel = agreement.seal_parcel(CONTEXT, private, public(other), "ash", "birch", both)
    opened = (other, public(private), "ash", "birch", parcel)
    assert agreement.open_parcel(CONTEXT, *opened) == both
    for later in (replace(CONTEXT, round_number=4), replace(CONTEXT, run="s")):
        with pytest.raises(MessageError, match="another round"):
            agreement.open_parcel(later, *opened)


def test_pair_key_is_the_same_at_both_sites_and_differs_by_round() -> None:
    one, two = agreement.new_key(), agreement.new_key()
    here = agreement.pair_key(CONTEXT, one, agreement.public_key(two), "ash", "birch")
    there = agreement.pair_key(CONTEXT, two, agreement.public_key(one), "birch", "ash")
    later = replace(CONTEXT, round_number=4)
    assert here == there
    assert here != agreement.pair_key(later, one, agreement.public_key(two), "ash", "birch")


def test_what_leaves_a_site_holds_none_of_its_secrets() -> None:
    states, roster = offered()
    ash, raw = share_secrets(states["ash"], roster)
    for secret in (ash.channel_key, ash.mask_key, ash.seed, *ash.shares["ash"]):
        assert len(secret) >= 32
        for text in (roster, raw):
            assert secret not in text
            assert secret.hex().encode() not in text
