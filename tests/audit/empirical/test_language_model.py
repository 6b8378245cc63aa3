"""A crowd of examples in a model, clipped by the product's engine."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.audit.empirical.broken import BROKEN
from tests.audit.empirical.tiny_model import examples, tiny_model

from offsite.audit.empirical.crowd import CanaryProblemMaker
from offsite.audit.empirical.language_model import engine_clipping
from offsite.audit.empirical.mechanism import Terms
from offsite.audit.empirical.plan import AuditPlan
from offsite.audit.empirical.product import clip_rows, product_mechanism
from offsite.audit.empirical.run import run_empirical
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.secure.errors import ConfigError

CANARIES = 100
# Each gradient is about ten times the clip norm; a claim of 0.4, since examples are weak canaries.
TERMS = Terms(noise_multiplier=4.0, sampling=Fraction(1, 2), steps=4, clip_norm=0.1)
PLAN = AuditPlan(TERMS, canaries=CANARIES, duels=200, known_duels=100)


def maker() -> CanaryProblemMaker:
    model = tiny_model()
    return lambda terms, included: model.problem(terms, included, examples(CANARIES, 2))


def test_the_engine_clips_what_rows_clip() -> None:
    model = tiny_model()
    problem = model.problem(TERMS, np.arange(CANARIES) < 5, examples(CANARIES, 2))
    units = np.arange(problem.units)[::2]
    expected, found = np.zeros((2, problem.values), np.float32)
    by_rows = clip_rows(problem, units, 0.1, expected)
    engine = PerExampleEngine(model.model, model.parameters)
    by_engine = engine_clipping(engine, 64)(problem, units, 0.1, found)
    assert by_engine == pytest.approx(by_rows, rel=1e-4)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_release_is_a_step_of_training() -> None:
    model = tiny_model()
    problem = model.problem(TERMS, np.zeros(CANARIES, np.bool_), examples(CANARIES, 2))
    before = torch.cat([p.detach().flatten() for p in model.parameters.values()])
    problem.advance(np.ones(problem.values))
    after = torch.cat([p.detach().flatten() for p in model.parameters.values()])
    expected = 0.05 / (0.5 * problem.units)
    assert (before - after).numpy() == pytest.approx(expected, rel=1e-3)


def test_a_canary_is_read_from_the_sum_of_many() -> None:
    problem = maker()(TERMS, np.ones(CANARIES, np.bool_))
    total = np.zeros(problem.values, np.float32)
    clip_rows(problem, np.array([3, 40, 41]), 0.1, total)
    along = problem.along_canaries(total.astype(np.float64))
    assert set(np.argsort(along)[-3:]) == {3, 40, 41}
    assert along[[3, 40, 41]] == pytest.approx(1.0, abs=0.2)


def test_the_engine_in_the_products_step_is_not_refuted() -> None:
    model = tiny_model()
    canaries = examples(CANARIES, 2)
    entropy = random.Random(1).randbytes
    engine = PerExampleEngine(model.model, model.parameters)
    audit, _ = run_empirical(
        PLAN,
        product_mechanism(entropy, engine_clipping(engine, 128)),
        entropy=entropy,
        problem_of=lambda terms, included: model.problem(terms, included, canaries),
    )
    assert not audit.is_refuted
    assert audit.epsilon_lower_bound < audit.claimed_epsilon


@pytest.mark.parametrize("name", ["no noise", "clipping off"])
def test_examples_alone_find_what_is_broken_in_a_model(name: str) -> None:
    """The duels would find it too; here it is the crowd that does."""
    start, entropy = BROKEN[name].factory(2), random.Random(2).randbytes
    audit, _ = run_empirical(PLAN, start, entropy=entropy, problem_of=maker())
    assert any(found.p_value <= found.significance for found in audit.crowd.values())


def test_an_example_for_every_canary() -> None:
    with pytest.raises(ConfigError, match="an example for each of 7 canaries, found 100"):
        tiny_model().problem(TERMS, np.ones(7, np.bool_), examples(CANARIES, 2))
