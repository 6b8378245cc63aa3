"""Membership inference on losses that are made up, so that the truth is known."""

import numpy as np
import pytest

from offsite.audit.attack.entropy import generator
from offsite.audit.attack.exposure import CHANCE_BITS, Exposure, Ranking, measure_exposure
from offsite.audit.attack.held_out import draw_held_out
from offsite.audit.attack.intervals import Interval
from offsite.audit.attack.losses import Losses, Pair
from offsite.audit.attack.membership import LEAST_ROWS, Membership, infer_membership
from offsite.audit.attack.scores import Difficulty, Score, score
from offsite.audit.attack.settings import AttackSettings
from offsite.audit.attack.verdict import Verdict, judge
from offsite.secure.errors import ConfigError

SETTINGS = AttackSettings(resamples=199)


def losses(random: np.random.Generator, rows: int, gain: float) -> Pair:
    """Rows as hard as they come, of which each gains ``gain`` per token and something at random."""
    tokens = random.integers(4, 20, rows).astype(float)
    before = random.normal(3, 1, rows)
    after = before - gain + random.normal(0, 0.1, rows)
    return Pair(Losses(before * tokens, tokens), Losses(after * tokens, tokens))


def inferred(
    seed: int, gain: float, rows: int = 80, settings: AttackSettings = SETTINGS
) -> Membership:
    random = np.random.default_rng(seed)
    members, held_out = losses(random, rows, gain), losses(random, rows, 0.0)
    return infer_membership(members, held_out, settings, random)


def test_what_chooses_the_attack_never_measures_it() -> None:
    """Of adapters that hold nothing, hardly any looks as if it did (`dp.md` 4.3 found four in ten)."""
    found = [inferred(seed, 0.0) for seed in range(200)]
    beyond = sum(membership.is_beyond_chance(0.95) for membership in found)
    assert beyond <= 30  # P[Bin(200, 0.05) > 30] < 1e-7
    assert sum(membership.advantage.low > 0 for membership in found) <= 30
    assert abs(np.mean([membership.advantage.value for membership in found])) < 0.05


def test_the_reference_finds_what_the_loss_alone_does_not() -> None:
    found = inferred(0, 0.3, 200)
    assert found.score is not Score.TUNED_LOSS
    assert found.advantage.low > 0.5
    random = np.random.default_rng(0)
    rows = losses(random, 400, 0.3), losses(random, 400, 0.0)
    flat = Difficulty(0.0, 0.0)
    alone = [score(Score.TUNED_LOSS, pair, flat).mean() for pair in rows]
    assert alone[0] - alone[1] < 0.5  # next to a spread of 1 between rows


def test_a_score_is_what_its_formula_says() -> None:
    pair = Pair(
        Losses(np.array([6.0, 2.0]), np.array([3.0, 1.0])),
        Losses(np.array([3.0, 3.0]), np.array([3.0, 1.0])),
    )
    line = Difficulty(0.5, 0.25)
    assert score(Score.TUNED_LOSS, pair, line).tolist() == [-1.0, -3.0]
    assert score(Score.MEAN_DIFFERENCE, pair, line).tolist() == [1.0, -1.0]
    assert score(Score.TOTAL_DIFFERENCE, pair, line).tolist() == [3.0, -1.0]
    assert score(Score.ADJUSTED_DIFFERENCE, pair, line).tolist() == [-0.25, -2.25]


def test_difficulty_is_the_line_through_the_held_out_rows() -> None:
    before = np.array([1.0, 2.0, 4.0])
    pair = Pair(Losses(before, np.ones(3)), Losses(before - (0.2 * before + 0.1), np.ones(3)))
    found = Difficulty.fitted(pair)
    assert (found.slope, found.intercept) == (pytest.approx(0.2), pytest.approx(0.1))
    same = Pair(Losses(np.ones(2), np.ones(2)), Losses(np.zeros(2), np.ones(2)))
    assert Difficulty.fitted(same) == Difficulty(0.0, 1.0)


def test_a_threshold_for_a_low_rate_names_as_few_as_it_says() -> None:
    found = [inferred(seed, 0.0, 240) for seed in range(40)]
    rates = [membership.low_rate for membership in found]
    assert all(rate is not None for rate in rates)
    mean = np.mean([rate.false_positives.value for rate in rates if rate])
    assert mean < 0.015  # 4,800 rows at most 1 % each


def test_too_few_rows_for_a_low_rate_give_none() -> None:
    assert inferred(0, 0.0, 100).low_rate is None


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=rf"at least {LEAST_ROWS} members .* found 19"):
        inferred(0, 0.0, LEAST_ROWS - 1)


def test_held_out_rows_are_drawn_at_random_and_reproducibly() -> None:
    drawn = draw_held_out(1000, 300, bytes(32))
    assert len(drawn) == 300 and drawn == draw_held_out(1000, 300, bytes(32))
    assert drawn != draw_held_out(1000, 300, b"\1" * 32)
    assert abs(np.mean(list(drawn)) - 499.5) < 6 * 1000 / np.sqrt(12 * 300)
    for count in (0, 1000):
        with pytest.raises(ConfigError, match="fewer than all"):
            draw_held_out(1000, count, bytes(32))
    with pytest.raises(ValueError, match="32 bytes"):
        generator(b"x", b"short")


def secret_pair(random: np.random.Generator, gain: float) -> Pair:
    before = random.normal(30, 2, 64)
    after = before + random.normal(0, 0.5, 64)
    after[0] -= gain
    return Pair(Losses(before, np.full(64, 9.0)), Losses(after, np.full(64, 9.0)))


def test_exposure_by_gain_sees_what_the_base_model_hides() -> None:
    random = np.random.default_rng(6)
    pairs = [secret_pair(random, 2.0) for _ in range(8)]
    found = measure_exposure(pairs, SETTINGS, random)
    assert found.ranking is Ranking.GAIN and found.most_bits == 6.0
    assert found.mean_bits.low > 4 and found.is_beyond_chance(0.95)
    assert found.bits == tuple(6 - np.log2(rank) for rank in found.ranks)


def test_exposure_by_chance_is_rarely_significant() -> None:
    random = np.random.default_rng(7)
    quick = AttackSettings(resamples=99)
    found = [
        measure_exposure([secret_pair(random, 0.0) for _ in range(4)], quick, random)
        for _ in range(300)
    ]
    assert sum(exposure.is_beyond_chance(0.95) for exposure in found) <= 39  # < 1e-7
    assert CHANCE_BITS == pytest.approx(1.4427, abs=1e-4)


def test_a_tie_counts_against_exposure() -> None:
    same = Pair(Losses(np.ones(8), np.ones(8)), Losses(np.ones(8), np.ones(8)))
    found = measure_exposure([same], SETTINGS, np.random.default_rng(0))
    assert found.ranks == (8,) and found.mean_bits.value == 0.0 and found.p_value == 1.0


@pytest.mark.parametrize(
    ("gain", "rows", "allowed", "verdict"),
    [
        (0.5, 200, 0.1, Verdict.EXCEEDED),
        (0.0, 200, 0.1, Verdict.UNDECIDED),
        (0.0, 4000, 0.1, Verdict.WITHIN),
        (0.5, 200, 1.0, Verdict.WITHIN),
    ],
)
def test_a_verdict_needs_rows(gain: float, rows: int, allowed: float, verdict: Verdict) -> None:
    settings = AttackSettings(resamples=99, allowed_advantage=allowed)
    judgement = judge(inferred(1, gain, rows, settings), None, settings)
    assert judgement.verdict is verdict


def test_exposed_secrets_are_enough_for_a_verdict() -> None:
    random = np.random.default_rng(8)
    exposure = measure_exposure([secret_pair(random, 9.0) for _ in range(6)], SETTINGS, random)
    settings = AttackSettings(resamples=99, allowed_advantage=1.0)
    judgement = judge(inferred(1, 0.0), exposure, settings)
    assert judgement.verdict is Verdict.EXCEEDED
    assert "mean exposure of 6 planted secrets" in judgement.reasons[1]


@pytest.mark.parametrize(
    ("bits", "chance", "verdict"),
    [
        (Interval(4.0, 3.5, 4.5), 0.001, Verdict.EXCEEDED),
        (Interval(2.0, 0.4, 5.0), 0.2, Verdict.UNDECIDED),  # few secrets: no upper bound below 3
        (Interval(2.5, 2.1, 3.5), 0.001, Verdict.UNDECIDED),  # beyond chance, perhaps beyond 3
        (Interval(1.5, 1.1, 2.0), 0.4, Verdict.WITHIN),
        (Interval(2.5, 2.2, 2.9), 0.001, Verdict.WITHIN),
    ],
)
def test_a_verdict_needs_secrets(bits: Interval, chance: float, verdict: Verdict) -> None:
    """What cannot be excluded is undecided, also where nothing is beyond chance."""
    settings = AttackSettings(resamples=99, allowed_advantage=1.0, allowed_exposure_bits=3.0)
    exposure = Exposure(Ranking.GAIN, 255, (40, 90), bits, chance)
    judgement = judge(inferred(1, 0.0), exposure, settings)
    assert judgement.verdict is verdict
    undecided = verdict is Verdict.UNDECIDED
    assert ("more secrets narrow the interval" in judgement.reasons[1]) is undecided


def test_all_problems_of_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"confidence is 1;.*allowed_advantage.*resamples is 0"):
        AttackSettings(confidence=1.0, allowed_advantage=2.0, resamples=0)
    assert AttackSettings.from_json(SETTINGS.to_json()) == SETTINGS
