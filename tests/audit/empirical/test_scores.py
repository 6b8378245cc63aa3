"""Scores and guesses: what speaks for a canary, and how many guesses are planned from it."""

import math
from fractions import Fraction

import numpy as np
import pytest

from offsite.audit.bounds.counts import Guesses
from offsite.audit.empirical.claim import claim_of
from offsite.audit.empirical.duel import duel_terms, duel_threshold, guess_by_threshold
from offsite.audit.empirical.guesses import (
    GuessCounts,
    GuessSheet,
    guess_extremes,
    plan_counts,
)
from offsite.audit.empirical.mechanism import Terms
from offsite.audit.empirical.scores import Reading, Scores, alternating_sign
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.accounting.view import epsilon_of

TERMS = Terms(2.0, Fraction(1, 4), 16)


def test_the_likelihood_ratio_is_that_of_the_sampled_gaussian() -> None:
    scores = Scores(TERMS, 3)
    for x in (np.array([0.0, 1.0, -2.0]), np.array([0.5, -1.0, 3.0])):
        scores.observe(x)
    sigma, q = 2.0, 0.25

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / (2 * sigma**2))

    expected = [
        sum(math.log((1 - q) + q * density(x, 1.0) / density(x, 0.0)) for x in (first, -second))
        for first, second in ((0.0, 0.5), (1.0, -1.0), (-2.0, 3.0))
    ]
    assert scores.of(Reading.LIKELIHOOD_RATIO) == pytest.approx(expected)


def test_noise_that_repeats_cancels_in_the_alternating_sum() -> None:
    scores, noise = Scores(TERMS, 50), np.random.default_rng(0).standard_normal(50)
    for step in range(16):
        scores.observe(noise + alternating_sign(step) * (np.arange(50) < 5))
    expected = np.where(np.arange(50) < 5, 16.0, 0.0)
    assert scores.of(Reading.ALTERNATING_SUM) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sampling", [Fraction(1), Fraction(1, 1000)])
def test_no_release_is_too_large_to_be_scored(sampling: Fraction) -> None:
    scores = Scores(Terms(0.1, sampling, 2), 4)
    scores.observe(np.array([1e8, -1e8, 0.0, 1.0]))
    ratio = scores.of(Reading.LIKELIHOOD_RATIO)
    assert np.isfinite(ratio).all() and ratio.argmax() == 0


# Guesses.


def test_extremes_are_guessed_and_counted() -> None:
    scores = np.array([0.1, 5.0, -3.0, 0.2, 4.0, -0.5])
    sheet = guess_extremes(scores, GuessCounts(2, 1))
    assert sheet == GuessSheet((1, 4), (2,))
    labels = np.array([False, True, False, True, False, True])
    assert sheet.count(labels) == Guesses(6, 3, 2)
    assert guess_extremes(scores, GuessCounts(0, 0)) == GuessSheet((), ())
    assert GuessSheet((), ()).count(labels) == Guesses(6, 0, 0)


@pytest.mark.parametrize(
    ("inside", "outside", "says"),
    [
        ((1, 1), (), "ascending"),
        ((2, 1), (), "ascending"),
        ((), (-1, 2), "ascending"),
        ((1, 2), (2,), "one guess a canary"),
    ],
)
def test_a_sheet_that_guesses_twice_is_refused(
    inside: tuple[int, ...], outside: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        GuessSheet(inside, outside)


def test_a_guess_about_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 3 canaries, found number 3"):
        GuessSheet((3,), ()).count(np.zeros(3, np.bool_))


@pytest.mark.parametrize("reading", Reading)
def test_the_planned_counts_depend_on_nothing_but_the_terms(reading: Reading) -> None:
    planned = plan_counts(TERMS, 1000, reading, 0.0125)
    assert planned == plan_counts(TERMS, 1000, reading, 0.0125)
    assert 10 <= planned.inside <= 200 and planned.outside in (0, planned.inside)


# Duels and claims.


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0, 5.0, 50.0])
def test_a_duel_has_an_even_number_of_full_batches(noise: float) -> None:
    terms = duel_terms(Terms(noise, Fraction(1, 7), 999, 0.5))
    assert (terms.noise_multiplier, terms.sampling, terms.clip_norm) == (noise, 1, 0.5)
    assert terms.steps % 2 == 0 and 2 <= terms.steps <= 64


def test_known_duels_set_the_threshold() -> None:
    scores, known = np.array([9.0, 11.0, 10.0, 12.0]), np.array([False, True, False, True])
    threshold = duel_threshold(scores, known)
    assert threshold == 10.5
    assert guess_by_threshold(scores, threshold) == GuessSheet((1, 3), (0, 2))


def test_the_claim_is_the_figure_of_record() -> None:
    claim = claim_of(TERMS, 1e-5)
    assert claim.epsilon == epsilon_of([TERMS.mechanism], 1e-5).pld == pytest.approx(2.51, abs=0.01)
    full = Terms(6.0, Fraction(1), 8)
    assert claim_of(full, 1e-5).epsilon == pytest.approx(
        epsilon_of([full.mechanism], 1e-5).pld, abs=1e-3
    )


def test_the_curve_of_a_sampled_claim_is_pessimistic_and_near() -> None:
    """As q goes to 1 the sampled curve becomes the Gaussian one, which no line may cross."""
    nearly = claim_of(Terms(3.0, Fraction(10**6 - 1, 10**6), 4), 1e-5).curve
    exact = claim_of(Terms(3.0, Fraction(1), 4), 1e-5).curve
    for probability in np.linspace(0.01, 0.99, 99):
        assert -1e-6 <= exact.least(probability) - nearly.least(probability) < 0.01
