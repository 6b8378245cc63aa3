"""Shamir's secret sharing over GF(256), bytewise and vectorised.

A secret of L bytes is L independent secrets: byte k is the value at 0 of a random polynomial of
degree t - 1, and the share at x holds the values at x. Any t shares give the secret, fewer say
nothing about it, whatever the computing power of whoever holds them.

The field is that of AES, GF(2)[z] / (z^8 + z^4 + z^3 + z + 1). Points are 1 to 255, so a cohort
has at most 255 members. The field has 65,536 products; the tests check all of them.

Shares have no integrity of their own: a wrong one gives a wrong secret. The protocol commits to
every share and to every secret (`commitments`). Table lookups are not constant in time; the only
observer would be another process on the machine of the one who shares.

Source: Shamir, How to share a secret, CACM 22(11), 1979; SLIP-39 uses the same field and evaluates
at the same kind of points, which the tests use as an oracle.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError, IntegrityError

Bytes = NDArray[np.uint8]

MOST_SHARES: Final = 255
_REDUCTION: Final = 0x11B
_ORDER: Final = 255


def split(secret: bytes, threshold: int, points: Sequence[int], coefficients: bytes) -> list[bytes]:
    """One share of `secret` for every point, in their order.

    Args:
        threshold: how many shares give the secret back, 1 to the number of points.
        points: different numbers from 1 to 255.
        coefficients: (threshold - 1) * len(secret) random bytes, used once.
    """
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ConfigError(f"threshold: expected 1 to {len(points)} shares, found {threshold}")
    if len(coefficients) != (threshold - 1) * len(secret):
        raise ConfigError(
            f"coefficients: expected {(threshold - 1) * len(secret)} random bytes, found "
            f"{len(coefficients)}"
        )
    rows = np.frombuffer(coefficients + secret, np.uint8).reshape(threshold, len(secret))
    at = np.array(points, np.uint8)[:, None]
    values = np.zeros((len(points), len(secret)), np.uint8)
    for row in rows:  # Horner: the secret, the constant term, comes last
        values = _multiply(values, at) ^ row
    return [value.tobytes() for value in values]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of shares by their points. All of them are used, so give exactly the threshold.

    Raises:
        IntegrityError: no shares, shares of different lengths, or an impossible point.
    """
    points = sorted(shares)
    _check_points(points)
    if len({len(share) for share in shares.values()}) != 1:
        raise IntegrityError("expected shares of one length, found several, or none at all")
    rows = np.stack([np.frombuffer(shares[point], np.uint8) for point in points])
    weights = np.array([_weight_at_zero(point, points) for point in points], np.uint8)[:, None]
    return bytes(np.bitwise_xor.reduce(_multiply(rows, weights), axis=0).tobytes())


def _weight_at_zero(point: int, points: Sequence[int]) -> int:
    """The Lagrange coefficient of `point` at 0: the product of x / (x - point) over the others."""
    powers, logarithms = _tables()
    exponent = 0
    for other in points:
        if other != point:  # subtraction is exclusive or
            exponent += int(logarithms[other]) - int(logarithms[other ^ point])
    return int(powers[exponent % _ORDER])


def _check_points(points: Sequence[int]) -> None:
    if not points or len(set(points)) != len(points):
        raise IntegrityError("expected every point once and at least one, found another number")
    if not all(1 <= point <= MOST_SHARES for point in points):
        raise IntegrityError(f"expected points from 1 to {MOST_SHARES}, found another")


def _multiply(a: Bytes, b: Bytes) -> Bytes:
    """Products in the field, by broadcasting."""
    return _products()[a, b]


@cache
def _products() -> Bytes:
    """All products, (256, 256)."""
    powers, logarithms = _tables()
    sums = logarithms[1:, None].astype(np.int64) + logarithms[None, 1:]
    products = np.zeros((256, 256), np.uint8)
    products[1:, 1:] = powers[sums % _ORDER]
    return products


@cache
def _tables() -> tuple[Bytes, NDArray[np.int64]]:
    """Powers of the generator 3, and logarithms to its base (that of 0 is unused)."""
    powers = np.zeros(_ORDER, np.uint8)
    logarithms = np.zeros(256, np.int64)
    value = 1
    for exponent in range(_ORDER):
        powers[exponent] = value
        logarithms[value] = exponent
        doubled = value << 1
        value ^= doubled ^ _REDUCTION if doubled & 0x100 else doubled
    return powers, logarithms
