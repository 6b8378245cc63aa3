"""The state machine of a private step: in any order of calls, one noise to each drawn unit once."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray
from tests.secure.privacy.randomness.streams import source

from offsite.secure.errors import ConfigError, OffsiteError, PolicyError
from offsite.secure.privacy.logical_batch import ClippedSum, LogicalBatch, Norms, Phase, StepTerms
from offsite.secure.privacy.mechanisms import PoissonGaussian, TruncatedPoissonGaussian
from offsite.secure.privacy.randomness import goodness
from offsite.secure.privacy.randomness.gaussian import Values, grid_bits, noise_into
from offsite.secure.privacy.randomness.poisson import PoissonSampler, TruncatedPoissonSampler
from offsite.secure.privacy.randomness.source import NoiseSource
from offsite.secure.privacy.units import Unit

UNITS, VALUES, CLIP = 12, 50, 0.8
NOISE = 0.9 * CLIP * 1.0001  # sigma times the longest gradient that passes
TERMS = StepTerms(PoissonSampler(UNITS, Fraction(1, 3)), CLIP, 0.9)
GRADIENTS = np.random.default_rng(0).normal(0, 0.2, (UNITS, VALUES))
Units = NDArray[np.int64]


def clipped(units: Units) -> NDArray[np.float64]:
    """Each unit's clipped gradient (U, P)."""
    norms = np.linalg.norm(GRADIENTS[units], axis=1, keepdims=True)
    return GRADIENTS[units] * np.minimum(1, CLIP / norms)


def summing(units: Units) -> ClippedSum:
    """What an engine does with one part."""

    def clipped_sum_into(total: Values) -> Norms:
        total += clipped(units).sum(axis=0)
        return np.linalg.norm(GRADIENTS[units], axis=1)

    return clipped_sum_into


def run(batch: LogicalBatch, origin: NoiseSource, parts: int = 3) -> tuple[Units, Values]:
    """One whole step: the units drawn, and the gradient."""
    drawn = batch.begin(origin)
    for units in np.array_split(drawn, parts):
        batch.add(units, summing(units))
    gradient = np.full(VALUES, np.nan, np.float32)
    batch.finish(gradient)
    return drawn, gradient


def expected(drawn: Units, *names: object) -> NDArray[np.float64]:
    """What the step of this source has to release, from the formula."""
    noise, steps = np.empty(VALUES), 2.0 ** grid_bits(NOISE)
    noise_into(noise, NOISE, source(*names).noise())
    return np.rint((clipped(drawn).sum(axis=0) + noise) * steps) / steps / 4


def opened(allowed: int = 3) -> tuple[LogicalBatch, Units]:
    """An open batch of several units."""
    batch = LogicalBatch(TERMS, VALUES, allowed)
    drawn = batch.begin(source("opened"))
    assert len(drawn) > 2
    return batch, drawn


def test_a_step_is_the_formula_however_it_is_split() -> None:
    close = 2.0 ** -grid_bits(NOISE)
    for parts in (1, 2, 5):
        drawn, gradient = run(LogicalBatch(TERMS, VALUES, 1), source("split"), parts)
        assert gradient == pytest.approx(expected(drawn, "split"), abs=close)


def test_an_empty_batch_is_noise_and_a_step() -> None:
    terms = StepTerms(PoissonSampler(UNITS, Fraction(1, 10**6)), CLIP, 0.9)
    batch, gradient = LogicalBatch(terms, 20_000, 1), np.empty(20_000, np.float32)
    assert len(batch.begin(source("empty"))) == 0
    batch.finish(gradient)
    assert (batch.begun_steps, batch.finished_steps) == (1, 1)
    noise = gradient.astype(np.float64) * float(terms.expected_units)
    assert goodness.variance(noise, NOISE, 5e-10).passed
    assert goodness.shape(noise, NOISE, 5e-10).passed


def test_a_cap_is_kept_and_the_denominator_stays_expected() -> None:
    terms = StepTerms(TruncatedPoissonSampler(UNITS, Fraction(1, 3), 2), CLIP, 0.9)
    batch = LogicalBatch(terms, VALUES, 30)
    sizes = [len(run(batch, source("cap", step))[0]) for step in range(30)]
    assert max(sizes) == 2 and terms.expected_units == 4


def test_begin_is_refused_while_one_is_open() -> None:
    batch, _ = opened()
    with pytest.raises(PolicyError, match="begin: expected a batch that is closed"):
        batch.begin(source("second"))
    assert batch.begun_steps == 1


def test_nothing_follows_a_finished_batch_but_begin() -> None:
    batch = LogicalBatch(TERMS, VALUES, 2)
    _, gradient = run(batch, source("finished"))
    before = gradient.copy()
    with pytest.raises(PolicyError, match="add: expected a batch that is open"):
        batch.add(np.array([0]), summing(np.array([0])))
    with pytest.raises(PolicyError, match="finish: expected a batch that is open"):
        batch.finish(gradient)
    assert np.array_equal(gradient, before)


def test_a_unit_is_added_once_and_only_if_drawn() -> None:
    batch, drawn = opened()
    batch.add(drawn[:1], summing(drawn[:1]))
    undrawn = np.setdiff1d(np.arange(UNITS), drawn)[:1]
    for units in (drawn[:1], drawn[:2], undrawn, drawn[[1, 1]], np.array([-1])):
        with pytest.raises(PolicyError, match="each once"):
            batch.add(units, summing(units))
    batch.add(drawn[1:], summing(drawn[1:]))
    gradient = np.empty(VALUES, np.float32)
    batch.finish(gradient)
    assert gradient == pytest.approx(expected(drawn, "opened"), abs=1e-4)


def test_a_drawn_unit_cannot_be_left_out() -> None:
    batch, drawn = opened()
    batch.add(drawn[1:], summing(drawn[1:]))
    with pytest.raises(PolicyError, match="some are missing"):
        batch.finish(np.empty(VALUES, np.float32))
    batch.add(drawn[:1], summing(drawn[:1]))
    batch.finish(np.empty(VALUES, np.float32))


def test_claimed_steps_are_a_limit_and_abandoned_ones_count() -> None:
    batch = LogicalBatch(TERMS, VALUES, 3)
    run(batch, source("limit", 0))
    batch.begin(source("limit", 1))
    batch.abandon()
    run(batch, source("limit", 2))
    with pytest.raises(PolicyError, match="at most the 3 steps"):
        batch.begin(source("limit", 3))
    assert (batch.begun_steps, batch.finished_steps) == (3, 2)


def test_the_same_entropy_twice_is_refused() -> None:
    batch = LogicalBatch(TERMS, VALUES, 3)
    run(batch, source("same"))
    with pytest.raises(PolicyError, match="new entropy"):
        batch.begin(source("same"))
    batch.begin(source("abandoned"))
    batch.abandon()
    with pytest.raises(PolicyError, match="new entropy"):
        batch.begin(source("abandoned"))


def test_a_source_that_was_drawn_from_is_refused() -> None:
    batch, origin = LogicalBatch(TERMS, VALUES, 1), source("drawn")
    origin.sampling()
    with pytest.raises(PolicyError, match="already drawn"):
        batch.begin(origin)
    assert batch.phase is Phase.CLOSED and batch.begun_steps == 0


def test_nothing_of_an_abandoned_batch_joins_the_next() -> None:
    batch, drawn = opened()
    batch.add(drawn, summing(drawn))
    batch.abandon()
    drawn, gradient = run(batch, source("next"))
    assert gradient == pytest.approx(expected(drawn, "next"), abs=1e-4)


def fails(total: Values) -> Norms:
    total += 1
    raise MemoryError("half of a part")


def interrupted(total: Values) -> Norms:
    total += 1
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [fails, interrupted])
def test_a_part_that_failed_ends_the_step(stop: ClippedSum) -> None:
    batch, drawn = opened()
    with pytest.raises((MemoryError, KeyboardInterrupt)):
        batch.add(drawn[:1], stop)
    gradient = np.zeros(VALUES, np.float32)
    for call in (
        lambda: batch.add(drawn, summing(drawn)),
        lambda: batch.finish(gradient),
        lambda: batch.begin(source("after")),
    ):
        with pytest.raises(PolicyError, match="found one that is broken"):
            call()
    assert not gradient.any()
    batch.abandon()
    again, gradient = run(batch, source("after"))
    assert gradient == pytest.approx(expected(again, "after"), abs=1e-4)


@pytest.mark.parametrize(
    "norms",
    [
        lambda units: np.ones(1),  # the whole part taken for one
        lambda units: np.ones(5 * len(units)),  # tokens taken for units
        lambda units: np.ones((len(units), 1)),
        lambda units: np.full(len(units), -1.0),
    ],
)
def test_an_engine_that_does_not_see_units_is_refused(norms: Callable[[Units], Norms]) -> None:
    batch, drawn = opened()
    with pytest.raises(PolicyError, match="one norm for every unit"):
        batch.add(drawn, lambda total: norms(drawn))
    assert batch.phase is Phase.BROKEN


def test_a_unit_without_a_finite_gradient_stops_nothing() -> None:
    batch, drawn = opened()

    def nothing_to_add(total: Values) -> Norms:
        return np.full(len(drawn), math.nan)

    batch.add(drawn, nothing_to_add)
    gradient = np.full(VALUES, np.nan, np.float32)
    batch.finish(gradient)
    assert gradient == pytest.approx(expected(drawn[:0], "opened"), abs=1e-4)


@pytest.mark.parametrize("factor", [1.01, 5.0, math.inf, math.nan])
def test_a_sum_that_was_not_clipped_is_not_released(factor: float) -> None:
    batch, drawn = opened()

    def too_much(total: Values) -> Norms:
        total[0] += factor * CLIP * len(drawn)
        return np.full(len(drawn), CLIP)

    batch.add(drawn, too_much)
    gradient = np.zeros(VALUES, np.float32)
    with pytest.raises(PolicyError, match="clipping did not happen"):
        batch.finish(gradient)
    assert not gradient.any() and batch.phase is Phase.BROKEN


def test_a_sum_at_the_very_bound_is_released() -> None:
    batch, drawn = opened()

    def aligned(total: Values) -> Norms:
        total[0] += CLIP * len(drawn)
        return np.full(len(drawn), CLIP)

    batch.add(drawn, aligned)
    batch.finish(np.empty(VALUES, np.float32))


def test_a_leftover_in_an_empty_batch_is_not_released() -> None:
    terms = StepTerms(PoissonSampler(UNITS, Fraction(1, 10**6)), CLIP, 0.9)
    batch = LogicalBatch(terms, VALUES, 1)
    batch.begin(source("leftover"))

    def leftover(total: Values) -> Norms:
        total[0] = 1e-6
        return np.empty(0)

    batch.add(np.empty(0, np.int64), leftover)
    with pytest.raises(PolicyError, match="clipping did not happen"):
        batch.finish(np.zeros(VALUES, np.float32))


def test_the_sum_itself_is_never_handed_out() -> None:
    batch, drawn = opened()
    kept: list[Values] = []

    def keeping(total: Values) -> Norms:
        kept.append(total)
        return summing(drawn)(total)

    batch.add(drawn, keeping)
    with pytest.raises(PolicyError, match="buffer of the caller"):
        batch.finish(kept[0])
    batch.finish(np.empty(VALUES, np.float32))
    assert not kept[0].any()


@pytest.mark.parametrize("wrong", [np.empty(VALUES), np.empty(VALUES - 1, np.float32)])
def test_a_buffer_of_another_kind_costs_no_step(wrong: Values) -> None:
    batch, drawn = opened()
    batch.add(drawn, summing(drawn))
    with pytest.raises(ConfigError, match="expected"):
        batch.finish(wrong)
    batch.finish(np.empty(VALUES, np.float32))


def test_the_step_is_that_of_the_mechanism() -> None:
    rate = Fraction(1, 3)
    free = PoissonGaussian(0.9, rate, 5, Unit.RECORD)
    assert StepTerms.of(free, UNITS, CLIP) == TERMS
    capped = TruncatedPoissonGaussian(0.9, rate, 5, UNITS, 2, Unit.PERSON)
    expected_terms = StepTerms(TruncatedPoissonSampler(UNITS, rate, 2), CLIP, 0.9)
    assert StepTerms.of(capped, UNITS, CLIP) == expected_terms
    with pytest.raises(ConfigError, match="units"):
        StepTerms.of(capped, UNITS + 1, CLIP)


def _sum_of(length: float) -> None:
    """A step whose every unit moves the sum by so much, all in one direction."""
    batch, drawn = opened()

    def longest(total: Values) -> Norms:
        total[0] += len(drawn) * length
        return np.ones(len(drawn))

    batch.add(drawn, longest)
    batch.finish(np.empty(VALUES, np.float32))


def test_noise_is_made_for_the_longest_gradient_that_passes() -> None:
    """Sigma is noise over sensitivity: it is scaled for what the checks let pass, not for C."""
    _sum_of(CLIP * 1.00009)
    with pytest.raises(PolicyError, match="clipping did not happen"):
        _sum_of(CLIP * 1.00011)
    assert TERMS.noise_scale == pytest.approx(TERMS.noise_multiplier * CLIP * 1.0001, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_terms_without_noise_or_clipping_are_refused(value: float) -> None:
    for clip, sigma in ((value, 1.0), (1.0, value)):
        with pytest.raises(ConfigError, match="expected above 0"):
            StepTerms(PoissonSampler(UNITS, Fraction(1, 3)), clip, sigma)


class AnyOrder(RuleBasedStateMachine):
    """All calls in any order against a model of four lines: what is open, missing, begun, done."""

    @initialize(allowed=st.integers(1, 6))
    def start(self, allowed: int) -> None:
        self.batch, self.allowed = LogicalBatch(TERMS, VALUES, allowed), allowed
        self.phase, self.missing = Phase.CLOSED, set[int]()
        self.drawn, self.begun, self.finished = np.empty(0, np.int64), 0, 0

    def refused(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except OffsiteError:
            return True
        return False

    @rule()
    def begin(self) -> None:
        origin, allowed = source("any", self.begun), self.begun < self.allowed
        results: list[Units] = []
        refused = self.refused(lambda: results.append(self.batch.begin(origin)))
        assert refused == (self.phase is not Phase.CLOSED or not allowed)
        if not refused:
            self.drawn, self.missing = results[0], set(results[0].tolist())
            self.name, self.phase, self.begun = self.begun, Phase.OPEN, self.begun + 1

    @rule(units=st.lists(st.integers(0, UNITS - 1), max_size=4))
    def add(self, units: list[int]) -> None:
        part = np.array(units, np.int64)
        right = len(set(units)) == len(units) and set(units) <= self.missing
        refused = self.refused(lambda: self.batch.add(part, summing(part)))
        assert refused == (self.phase is not Phase.OPEN or not right)
        if not refused:
            self.missing -= set(units)

    @precondition(lambda self: self.missing)
    @rule(share=st.floats(0, 1))
    def add_some(self, share: float) -> None:
        self.add(sorted(self.missing)[: 1 + int(share * len(self.missing))])

    @rule()
    def fail(self) -> None:
        if self.phase is Phase.OPEN:
            with pytest.raises(MemoryError):
                self.batch.add(np.empty(0, np.int64), fails)
            self.phase = Phase.BROKEN

    @rule()
    def finish(self) -> None:
        gradient = np.full(VALUES, np.nan, np.float32)
        refused = self.refused(lambda: self.batch.finish(gradient))
        assert refused == (self.phase is not Phase.OPEN or bool(self.missing))
        assert np.isnan(gradient).all() == refused
        if not refused:
            assert gradient == pytest.approx(expected(self.drawn, "any", self.name), abs=1e-4)
            self.phase, self.finished = Phase.CLOSED, self.finished + 1

    @rule()
    def abandon(self) -> None:
        self.batch.abandon()
        self.phase, self.missing = Phase.CLOSED, set()

    @invariant()
    def books_agree(self) -> None:
        assert self.batch.phase is self.phase
        assert (self.batch.begun_steps, self.batch.finished_steps) == (self.begun, self.finished)


def test_the_machine_is_the_specified_one() -> None:
    run_state_machine_as_test(AnyOrder)
