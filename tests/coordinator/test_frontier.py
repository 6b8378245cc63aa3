"""The frontier, by its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.coordinator.search.frontier import (
    FULL,
    Breach,
    breaches,
    dominates,
    frontier,
)

NAMES = [objective.name for objective in FULL]
FIGURES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([-0.25, 0.0, 0.25, 0.5, 1.0]))


LIMITS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.25, 1.0]))


def same(figures: dict[str, float]) -> dict[str, float]:
    return figures


def key(figures: dict[str, float]) -> tuple[float, ...]:
    return tuple(objective.of(figures) for objective in FULL)


@given(FIGURES, FIGURES, FIGURES)
def test_dominance_is_a_strict_partial_order(a, b, c) -> None:
    assert not dominates(a, a, FULL)
    assert not (dominates(a, b, FULL) and dominates(b, a, FULL))
    if dominates(a, b, FULL) and dominates(b, c, FULL):
        assert dominates(a, c, FULL)


@given(st.lists(FIGURES))
def test_what_is_left_out_is_dominated_by_what_stays_and_nothing_that_stays_is(points) -> None:
    kept = frontier(points, same, FULL)
    assert bool(kept) is bool(points)
    assert kept == [p for p in points if any(p is k for k in kept)]  # the order given
    for point in points:
        if any(point is k for k in kept):
            assert not any(dominates(other, point, FULL) for other in points)
        else:
            assert any(dominates(k, point, FULL) for k in kept)


@given(st.lists(FIGURES, min_size=1), st.randoms())
def test_the_order_of_the_points_does_not_matter_and_a_second_pass_changes_nothing(
    points, random
) -> None:
    kept = frontier(points, same, FULL)
    assert frontier(kept, same, FULL) == kept
    shuffled = random.sample(points, len(points))
    assert sorted(map(key, frontier(shuffled, same, FULL))) == sorted(map(key, kept))


def test_each_objective_points_the_way_it_says() -> None:
    base = {"plug_in": 0.5, "healed": 0.5, "bytes": 10.0}
    assert dominates(base | {"plug_in": 0.6}, base, FULL)
    assert dominates(base | {"healed": 0.4}, base, FULL)
    assert dominates(base | {"bytes": 9.0}, base, FULL)
    assert not dominates(base | {"plug_in": 0.6, "bytes": 11.0}, base, FULL)
    below_chance = {"plug_in": 0.5, "healed": -0.3, "bytes": 10.0}
    assert not dominates(below_chance, below_chance | {"healed": 0.0}, FULL)
    unmeasured = {"plug_in": 0.5, "bytes": 10.0}
    assert dominates(base, unmeasured, FULL)


@given(FIGURES, LIMITS)
def test_a_limit_is_broken_by_what_was_measured_and_is_above_it(figures, limits) -> None:
    broken = breaches(figures, limits)
    assert {b.name for b in broken} == {
        name for name, limit in limits.items() if figures.get(name, limit) > limit
    }
    assert all(b.excess > 0 and b.limit == limits[b.name] for b in broken)


@pytest.mark.parametrize(
    ("breach", "text"),
    [
        (Breach("healed", 0.61234, 0.5), "healed: at most 0.5, found 0.6123"),
        (Breach("bytes", 2e9, 1e9), "bytes: at most 1000000000, found 2000000000"),
    ],
)
def test_a_breach_names_figure_limit_and_value(breach: Breach, text: str) -> None:
    assert str(breach) == text
