"""What travels: round trips, and strict reading of whatever comes."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.common.errors import MessageError
from medfed.common.secure_sum import RoundContext, threshold_of, wire

KEY = st.binary(min_size=32, max_size=32)
NAMES = st.text(min_size=1, max_size=8)
PARCEL = st.binary(max_size=wire.MAX_PARCEL_BYTES)
READERS: list[Callable[[bytes], object]] = [
    wire.PublicKeys.from_bytes,
    wire.unpack_roster,
    wire.Shares.from_bytes,
    wire.unpack_parcels,
    wire.unpack_names,
    wire.Reveal.from_bytes,
]


@given(KEY, KEY)
def test_keys_survive_a_round_trip(channel: bytes, mask: bytes) -> None:
    keys = wire.PublicKeys(channel=channel, mask=mask)
    assert wire.PublicKeys.from_bytes(keys.to_bytes()) == keys
    assert wire.unpack_roster(wire.pack_roster({"a": keys})) == {"a": keys}


@given(KEY, st.dictionaries(NAMES, st.tuples(KEY, KEY)), st.dictionaries(NAMES, PARCEL))
def test_shares_survive_a_round_trip(
    seed: bytes, commitments: dict[str, tuple[bytes, bytes]], parcels: dict[str, bytes]
) -> None:
    shares = wire.Shares(seed_commitment=seed, share_commitments=commitments, parcels=parcels)
    assert wire.Shares.from_bytes(shares.to_bytes()) == shares
    assert wire.unpack_parcels(wire.pack_parcels(parcels)) == parcels


@given(st.dictionaries(NAMES, PARCEL), st.dictionaries(NAMES, PARCEL), st.frozensets(NAMES))
def test_reveals_and_names_survive_a_round_trip(
    seeds: dict[str, bytes], keys: dict[str, bytes], names: frozenset[str]
) -> None:
    reveal = wire.Reveal(seeds=seeds, keys=keys)
    assert wire.Reveal.from_bytes(reveal.to_bytes()) == reveal
    assert wire.unpack_names(wire.pack_names(names)) == names


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__qualname__)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"7",
        b'"text"',
        b"null",
        b'{"channel": 7}',
        b'{"a": 1}',
        b'{"a": "zz"}',
        b'{"a": ["00"]}',
        b'["a", "a"]',
        b"[1]",
        b'{"seeds": [], "keys": {}}',
        b'{"seeds": {}, "keys": {}, "more": {}}',
        b'{"seed": "00", "commitments": {}, "parcels": {}}',
        b'{"a": "00", "a": "01"}',
        b'{"a": "' + b"00" * 257 + b'"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_such_message_is_refused(read: Callable[[bytes], object], raw: bytes) -> None:
    with pytest.raises(MessageError):
        read(raw)


@pytest.mark.parametrize("raw", [b'{"channel":"00","mask":"00"}', b'{"channel":"00"}'])
def test_keys_of_another_length_are_refused(raw: bytes) -> None:
    with pytest.raises(MessageError, match="Expected"):
        wire.PublicKeys.from_bytes(raw)


@pytest.mark.parametrize(
    ("share", "num", "expected"),
    # The share rounded up; 0.9 * 10 is 9 whatever float says; always more than half.
    [
        (2 / 3, 3, 2),
        (2 / 3, 4, 3),
        (2 / 3, 6, 4),
        (0.9, 10, 9),
        (0.7, 10, 7),
        (1, 8, 8),
        (0.51, 2, 2),
        (0.51, 8, 5),
        (0.500001, 64, 33),
    ],
)
def test_threshold_is_the_share_rounded_up_and_more_than_half(
    share: float, num: int, expected: int
) -> None:
    assert threshold_of(share, num) == expected


@pytest.mark.parametrize(("num", "threshold"), [(1, 1), (4, 2), (4, 5), (257, 200), (0, 0)])
def test_rounds_without_protection_are_refused(num: int, threshold: int) -> None:
    with pytest.raises(MessageError, match="Expected"):
        RoundContext(study="d", run="r", round_number=1, num_participants=num, threshold=threshold)


def test_labels_differ_by_every_part() -> None:
    base = {"study": "d", "run": "r", "round_number": 1, "num_participants": 4, "threshold": 3}
    changes = [{}, {"study": "e"}, {"run": "s"}, {"round_number": 2}, {"num_participants": 5}]
    changes.append({"threshold": 4})
    contexts = [RoundContext(**{**base, **change}) for change in changes]  # type: ignore[arg-type]
    labels = {context.derive(bytes(32), "x", "a", "b") for context in contexts}
    labels |= {contexts[0].derive(bytes(32), *names) for names in (("x", "ab"), ("y", "a", "b"))}
    labels.add(contexts[0].derive(bytes(32), "x", 'a", "b'))
    assert len(labels) == len(contexts) + 3
