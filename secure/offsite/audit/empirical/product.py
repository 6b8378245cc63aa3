"""The product's own step under audit: its sampler, its noise, its logical batch.

Clipping is an argument, since it is what differs by model: `clip_rows` clips the rows that a problem
gives, an engine of `offsite.emulator.privacy` clips inside a backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from offsite.audit.empirical.mechanism import Doubles, Mechanism, MechanismFactory, Problem, Terms
from offsite.secure.privacy.logical_batch import LogicalBatch, Norms, StepTerms
from offsite.secure.privacy.randomness.gaussian import Values
from offsite.secure.privacy.randomness.poisson import PoissonSampler, Units
from offsite.secure.privacy.randomness.source import ENTROPY_BYTES, NoiseSource

Entropy = Callable[[int], bytes]
"""So many bytes that nobody can predict: `os.urandom`."""
Clipping = Callable[[Problem, Units, float, Values], Norms]
"""Adds the clipped gradients of units to a total; returns each one's norm before."""

PART_BYTES: Final = 8 << 20
"""Of gradients that are in memory at once."""


def clip_rows(problem: Problem, units: Units, clip_norm: float, total: Values) -> Norms:
    """total += Σ_u min(1, C / ‖g_u‖) g_u, in double precision."""
    gradients = problem.gradients(units)
    norms: Doubles = np.sqrt(np.einsum("up,up->u", gradients, gradients))
    factors = clip_norm / np.maximum(norms, clip_norm)
    total += (factors @ gradients).astype(np.float32)
    return norms


def product_mechanism(entropy: Entropy, clipping: Clipping = clip_rows) -> MechanismFactory:
    """Runs as `edge-client` makes them, with noise from `entropy`."""

    def start(terms: Terms, problem: Problem) -> Mechanism:
        step_terms = StepTerms(
            PoissonSampler(problem.units, terms.sampling), terms.clip_norm, terms.noise_multiplier
        )
        batch = LogicalBatch(step_terms, problem.values, terms.steps)
        return _LogicalBatches(batch, entropy, clipping)

    return start


@dataclass(slots=True)
class _LogicalBatches:
    """Steps of one run."""

    batch: LogicalBatch
    entropy: Entropy
    clipping: Clipping

    def release(self, problem: Problem) -> Doubles:
        source = NoiseSource(self.entropy(ENTROPY_BYTES), b"audit %d" % self.batch.begun_steps)
        drawn = self.batch.begin(source)
        clip_norm = self.batch.terms.clip_norm
        part = max(1, PART_BYTES // (8 * problem.values))
        for start in range(0, len(drawn), part):
            units = drawn[start : start + part]
            self.batch.add(units, partial(self.clipping, problem, units, clip_norm))
        mean = np.empty(problem.values, np.float32)
        self.batch.finish(mean)
        # The divisor is a constant of the run; the attacker multiplies it away.
        return mean.astype(np.float64) * float(self.batch.terms.expected_units)
