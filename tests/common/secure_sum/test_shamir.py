"""Secret sharing: any t shares give all 256 bits back, fewer say nothing."""

import contextlib
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import isprime

from medfed.common.secure_sum import shamir


def test_field_is_that_of_a_prime_above_every_secret() -> None:
    assert isprime(shamir.PRIME)
    assert not any(isprime(2**256 + k) for k in range(297))


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4))
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, more: int) -> None:
    shares = dict(enumerate(shamir.split(secret, threshold, threshold + more), start=1))
    for chosen in itertools.combinations(shares, threshold):
        assert shamir.join({x: shares[x] for x in chosen}) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\x00" * 31 + b"\x01"])
def test_extreme_secrets_keep_every_bit(secret: bytes) -> None:
    assert shamir.join(dict(enumerate(shamir.split(secret, 3, 3), start=1))) == secret


def test_too_few_shares_fit_every_secret_equally() -> None:
    # With t - 1 shares given, each candidate secret has exactly one polynomial: the missing share
    # that makes a given secret is found by solving for it, and it is a number of the field.
    shares = dict(enumerate(shamir.split(os.urandom(32), 3, 3), start=1))
    p = shamir.PRIME
    y1, y2 = (int.from_bytes(shares[x], "big") for x in (1, 2))
    for candidate in (0, 1, 2**255):
        # f(0) = 3 y1 - 3 y2 + y3 for points 1, 2, 3.
        y3 = (candidate - 3 * y1 + 3 * y2) % p
        joined = shamir.join({1: shares[1], 2: shares[2], 3: y3.to_bytes(33, "big")})
        assert int.from_bytes(joined, "big") == candidate


def test_a_wrong_share_does_not_give_the_secret() -> None:
    secret = os.urandom(32)
    shares = dict(enumerate(shamir.split(secret, 3, 4), start=1))
    wrong = {1: shares[1], 2: shares[2], 3: shares[4]}
    with contextlib.suppress(ValueError):  # more than 256 bits: also not the secret
        assert shamir.join(wrong) != secret


@pytest.mark.parametrize("share", [b"", bytes(32), b"\xff" * 33, bytes(34)])
def test_shares_that_are_no_numbers_of_the_field_are_refused(share: bytes) -> None:
    with pytest.raises(ValueError, match="numbers of the field"):
        shamir.join({1: share})


@pytest.mark.parametrize(
    ("secret", "threshold", "num"), [(bytes(31), 2, 3), (bytes(32), 4, 3), (bytes(32), 0, 3)]
)
def test_impossible_sharings_are_refused(secret: bytes, threshold: int, num: int) -> None:
    with pytest.raises(ValueError, match="Expected 32 bytes"):
        shamir.split(secret, threshold, num)
