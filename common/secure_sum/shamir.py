"""Shamir's secret sharing of 256-bit secrets: any t shares give the secret, t - 1 say nothing.

Over the integers modulo the smallest prime above 2**256, so that a secret is one number and keeps
all its bits.

Reference: Shamir 1979, https://doi.org/10.1145/359168.359176.
"""

import secrets
from collections.abc import Mapping
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """Return shares 1 to `num_shares` of a 32-byte secret; `threshold` of them give it back.

    The polynomial is drawn from the operating system's generator.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= num_shares:
        raise ValueError(
            f"Expected 32 bytes and 1 <= threshold <= shares, got {len(secret)} bytes, threshold "
            f"{threshold}, {num_shares} shares."
        )
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [
        _evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, num_shares + 1)
    ]


def join(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret from exactly `threshold` shares by their numbers (1-based).

    Wrong or too few shares give a wrong secret: check it against a commitment.

    Raises:
        ValueError: A share that is no number of the field, or a secret of more than 256 bits, which
            only wrong shares give.
    """
    points = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    if any(x < 1 or len(shares[x]) != SHARE_BYTES or y >= PRIME for x, y in points.items()):
        raise ValueError("Expected numbers of the field with positive indices as shares.")
    weights = _weights_at_zero(tuple(points))
    secret = sum(y * weight for y, weight in zip(points.values(), weights, strict=True))
    secret %= PRIME
    if secret >= 2**256:
        raise ValueError("The shares give no 256-bit secret: at least one is wrong.")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients for the value at 0; all secrets of a round use the same few."""
    weights = []
    for x in points:
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)


def _evaluate(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value
