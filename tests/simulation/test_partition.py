"""Every row has one owner, whoever divides them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.errors import ConfigError
from offsite.simulation.partition import Parts, dirichlet, iid

GROUPS = st.lists(st.integers(0, 5), min_size=1, max_size=120)


def _check(parts: Parts, rows: int, clients: int) -> None:
    assert len(parts) == clients
    assert sorted(row for part in parts for row in part) == list(range(rows))
    sizes = {len(part) for part in parts}
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert all(list(part) == sorted(part) for part in parts)


@given(st.integers(1, 200), st.data(), st.integers(0, 2**32))
def test_every_row_goes_to_one_client(rows: int, data: st.DataObject, seed: int) -> None:
    clients = data.draw(st.integers(1, rows))
    _check(iid(rows, clients, seed), rows, clients)


@given(GROUPS, st.data(), st.sampled_from([1e-6, 0.01, 0.3, 1.0, 100.0]), st.integers(0, 2**32))
def test_every_row_goes_to_one_client_by_group(
    groups: list[int], data: st.DataObject, alpha: float, seed: int
) -> None:
    clients = data.draw(st.integers(1, len(groups)))
    parts = dirichlet(groups, clients, alpha, seed)
    _check(parts, len(groups), clients)
    assert parts == dirichlet(groups, clients, alpha, seed)


def test_another_seed_is_another_division() -> None:
    groups = [i % 4 for i in range(200)]
    assert dirichlet(groups, 10, 0.3, 0) != dirichlet(groups, 10, 0.3, 1)
    assert iid(200, 10, 0) != iid(200, 10, 1)


def _largest_share(alpha: float) -> float:
    """The share of a client's commonest group, over clients."""
    groups = [i % 5 for i in range(2000)]
    parts = dirichlet(groups, 40, alpha, 3)
    shares = [max(Counter(groups[row] for row in part).values()) / len(part) for part in parts]
    return sum(shares) / len(shares)


def test_a_small_alpha_is_one_sided_and_a_large_one_is_even() -> None:
    one_sided, usual, even = map(_largest_share, (0.01, 0.3, 1000.0))
    assert one_sided > 0.9 and even < 0.35
    assert even + 0.1 < usual < one_sided


def test_alpha_is_counted_per_group() -> None:
    """Of Dir(1, 1, ..., 1) over two groups a share is uniform, so its variance is a twelfth."""
    groups = [i % 2 for i in range(40_000)]
    parts = dirichlet(groups, 400, 1.0, 5)
    shares = [sum(groups[row] for row in part) / len(part) for part in parts]
    mean = sum(shares) / len(shares)
    assert sum((share - mean) ** 2 for share in shares) / len(shares) == pytest.approx(
        1 / 12, rel=0.15
    )


@pytest.mark.parametrize("clients", [0, 11])
def test_as_many_clients_as_rows_at_most(clients: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 10"):
        iid(10, clients, 0)
    with pytest.raises(ConfigError, match="expected 1 to 10"):
        dirichlet([0] * 10, clients, 1.0, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_is_above_nothing(alpha: float) -> None:
    with pytest.raises(ConfigError, match="--alpha"):
        dirichlet([0, 1], 2, alpha, 0)
