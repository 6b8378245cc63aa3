"""What stays of a campaign, by its gate alone."""

import pytest

from offsite.coordinator.standing import ClosedRound, standing


def _rounds(*accs: float | None, rolled_back: tuple[int, ...] = ()) -> list[ClosedRound]:
    return [ClosedRound(n, acc, n in rolled_back) for n, acc in enumerate(accs, start=1)]


def test_nothing_closed() -> None:
    now = standing(0.5, [])
    assert (now.best_round, now.acc, now.may_release(0.01)) == (0, 0.5, False)


def test_the_best_round_counts_and_not_the_last() -> None:
    now = standing(0.5, _rounds(0.55, 0.60, 0.595))
    assert (now.best_round, now.best_acc, now.acc) == (2, 0.60, 0.595)
    assert now.may_release(0.01)


def test_a_rolled_back_round_leaves_where_it_started() -> None:
    now = standing(0.5, _rounds(0.55, 0.30, rolled_back=(2,)))
    assert (now.acc, now.best_round, now.accepted, now.closed) == (0.55, 1, 1, 2)


@pytest.mark.parametrize(
    ("acc", "regresses"), [(0.49, False), (0.4899, True), (0.5 - 0.01, False), (0.9, False)]
)
def test_a_regression_is_more_than_the_tolerance_below_the_start(
    acc: float, regresses: bool
) -> None:
    assert standing(0.5, []).regresses(acc, 0.01) is regresses


def test_what_is_worse_than_the_full_model_by_more_than_the_tolerance_is_not_released() -> None:
    slightly = standing(0.5, _rounds(0.495))
    assert slightly.may_release(0.01)
    assert not slightly.may_release(0.001)


@pytest.mark.parametrize(
    ("accs", "over"),
    [((0.6, 0.6), False), ((0.6, 0.6, 0.6), True), ((0.6, 0.5, 0.7), False), ((0.5, 0.5), True)],
)
def test_patience_counts_rounds_without_a_gain(accs: tuple[float, ...], over: bool) -> None:
    assert standing(0.5, _rounds(*accs)).is_over(rounds=10, patience=2) is over


def test_rolled_back_rounds_use_up_patience() -> None:
    now = standing(0.5, _rounds(0.6, 0.1, 0.1, rolled_back=(2, 3)))
    assert now.is_over(rounds=10, patience=2)


def test_without_a_gate_the_last_round_is_released_and_patience_never_ends_it() -> None:
    now = standing(None, _rounds(None, None, None))
    assert (now.best_round, now.may_release(0.0)) == (3, True)
    assert not now.is_over(rounds=4, patience=1)
    assert now.is_over(rounds=3, patience=1)
