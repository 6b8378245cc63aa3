"""Shamir over GF(256): the field exhaustively, the scheme by properties."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.aggregation import shamir
from offsite.secure.errors import ConfigError, IntegrityError


def product(a: int, b: int) -> int:
    """The field's product by its definition: polynomials, reduced bit by bit."""
    result = 0
    while b:
        if b & 1:
            result ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11B
        b >>= 1
    return result


def bytes_of(label: str, size: int) -> bytes:
    return hashlib.shake_256(label.encode()).digest(size)


def test_all_products_of_the_field() -> None:
    expected = [[product(a, b) for b in range(256)] for a in range(256)]
    assert np.array_equal(shamir._products(), np.array(expected, np.uint8))


def test_a_known_sharing() -> None:
    """Secret 42 with the polynomial 42 + 166 z + 94 z², evaluated by hand in GF(256)."""
    shares = shamir.split(b"\x2a", 3, [1, 2, 3], bytes([94, 166]))
    expected = [42 ^ product(166, x) ^ product(94, product(x, x)) for x in (1, 2, 3)]
    assert [share[0] for share in shares] == expected


@given(st.integers(1, 20), st.data())
def test_any_threshold_of_shares_gives_the_secret(members: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, members))
    secret = data.draw(st.binary(min_size=1, max_size=64))
    points = data.draw(
        st.lists(st.integers(1, 255), min_size=members, max_size=members, unique=True)
    )
    coefficients = bytes_of("coefficients", (threshold - 1) * len(secret))
    shares = dict(zip(points, shamir.split(secret, threshold, points, coefficients), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert shamir.combine({point: shares[point] for point in chosen}) == secret


def test_every_subset_of_five() -> None:
    secret = bytes_of("secret", 32)
    shares = shamir.split(secret, 3, range(1, 6), bytes_of("c", 64))
    for chosen in combinations(range(5), 3):
        assert shamir.combine({i + 1: shares[i] for i in chosen}) == secret
    for few in combinations(range(5), 2):
        assert shamir.combine({i + 1: shares[i] for i in few}) != secret


def test_fewer_shares_say_nothing() -> None:
    """Given one share of a 2-of-3 sharing, every secret has exactly one polynomial through it."""
    seen = set()
    for secret in range(256):
        matching = [
            c
            for c in range(256)
            if shamir.split(bytes([secret]), 2, [1, 2, 3], bytes([c]))[0] == b"\x07"
        ]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) == 256


@pytest.mark.parametrize("points", [[], [0, 1], [1, 1], [1, 256]])
def test_impossible_points_are_refused(points: list[int]) -> None:
    with pytest.raises(IntegrityError):
        shamir.split(b"x", 1, points, b"")


@pytest.mark.parametrize("threshold", [0, 4])
def test_impossible_thresholds_are_refused(threshold: int) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        shamir.split(b"x", threshold, [1, 2, 3], bytes(8))


def test_coefficients_are_counted() -> None:
    with pytest.raises(ConfigError, match="expected 4 random bytes, found 5"):
        shamir.split(b"xy", 3, [1, 2, 3], bytes(5))


def test_shares_of_two_lengths_are_refused() -> None:
    with pytest.raises(IntegrityError, match="one length"):
        shamir.combine({1: b"a", 2: b"ab"})
