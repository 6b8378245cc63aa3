"""One private step as a state machine: begin, add as often as memory asks for, finish.

                begin                 finish
      CLOSED ──────────▶ OPEN ──────────────────▶ CLOSED
         ▲                │  ▲
         │                │  └─ add (its units, never one twice)
         │    an add that │
         │    failed      ▼
         └───────────── BROKEN
             abandon

The units of a step rarely fit into memory together, so their clipped gradients are summed part by
part. What goes wrong then is silent elsewhere: a loop that ends inside a batch leaves a sum that
joins the next one, a part is added twice, or an empty batch is skipped. Here the machine draws the
units itself and keeps book: noise is added once, when every drawn unit was added exactly once, to
a buffer that was zero at the beginning. An empty batch is zero plus noise, and a step.

    gradient = round_to_grid( Σ_i min(1, C / ‖g_i‖) g_i + N(0, (σ C')²) ) / (q n),  C' = 1.0001 C

Clipping in float32 may leave a unit a little longer than C, by at most `TOLERANCE`; noise is scaled
for that length, so that sigma is what the ledger says for every sum that passes.

A failed or abandoned step releases nothing and counts as begun, since its claim is charged.
Source: Abadi et al., CCS 2016, algorithm 1, with the expected batch as denominator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.mechanisms import PoissonGaussian, TruncatedPoissonGaussian
from offsite.secure.privacy.randomness.gaussian import Values, grid_bits, noised_into
from offsite.secure.privacy.randomness.poisson import (
    PoissonSampler,
    Sampler,
    TruncatedPoissonSampler,
    Units,
)
from offsite.secure.privacy.randomness.source import NoiseSource

Norms = NDArray[np.floating]
ClippedSum = Callable[[Values], Norms]
"""Adds the clipped gradients of a part to the total (P,); returns each unit's norm before clipping.

A unit whose gradient is not finite adds nothing and has a norm that is not: to stop because of one
unit would tell about it.
"""

TOLERANCE: Final = 1e-4
"""By which float32 may carry a clipped gradient beyond C; the start-up proof allows the same, and the
noise is made for it."""
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class StepTerms:
    """What a private step does; frozen for a campaign."""

    sampler: Sampler
    clip_norm: float  # C, in units of the gradient
    noise_multiplier: float  # sigma, in units of C

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected above 0, found {getattr(self, name)}")
        grid_bits(self.noise_scale)

    @classmethod
    def of(
        cls, mechanism: PoissonGaussian | TruncatedPoissonGaussian, units: int, clip_norm: float
    ) -> "StepTerms":
        """The step that a mechanism of the ledger stands for: what is run is what is charged.

        Args:
            units: records or persons in the data set.
            clip_norm: C, which is no part of a mechanism.

        Raises:
            ConfigError: the mechanism is that of a data set of another size.
        """
        sampler: Sampler
        if isinstance(mechanism, TruncatedPoissonGaussian):
            if mechanism.units != units:
                raise ConfigError("units: expected those of the mechanism, found another number")
            sampler = TruncatedPoissonSampler(units, mechanism.sampling, mechanism.cap)
        else:
            sampler = PoissonSampler(units, mechanism.sampling)
        return cls(sampler, clip_norm, mechanism.noise_multiplier)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise on the sum: sigma times the most that a unit moves it by.

        Guarantees: `test_noise_is_made_for_the_longest_gradient_that_passes`.
        """
        return self.noise_multiplier * self.most_norm

    @property
    def most_norm(self) -> float:
        """How far one unit may move the sum: C, and what float32 adds to it."""
        return self.clip_norm * (1 + TOLERANCE)

    @property
    def expected_units(self) -> Fraction:
        """q · n, by which every sum is divided, whatever was drawn."""
        return self.sampler.sampling * self.sampler.units


class Phase(Enum):
    """Where a logical batch stands."""

    CLOSED = "closed"
    OPEN = "open"
    BROKEN = "broken"


class LogicalBatch:
    """The private steps of one claim, one after the other.

    Args:
        values: P, the number of trainable values.
        allowed_steps: how many steps the ledger has claimed.

    Guarantees: noise is added exactly once to the sum of every drawn unit exactly once
    (`test_the_machine_is_the_specified_one`); no sum outlives its step
    (`test_nothing_of_an_abandoned_batch_joins_the_next`); entropy is used once
    (`test_the_same_entropy_twice_is_refused`).
    """

    def __init__(self, terms: StepTerms, values: int, allowed_steps: int) -> None:
        if values < 1 or allowed_steps < 1:
            raise ConfigError("logical batch: expected 1 value and 1 step or more, found none")
        self.terms = terms
        self.phase = Phase.CLOSED
        self.begun_steps = 0
        self.finished_steps = 0
        self._allowed_steps = allowed_steps
        self._total: Values = np.zeros(values, np.float32)
        self._source: NoiseSource | None = None
        self._entropy_seen: set[bytes] = set()
        self._waiting: set[int] = set()
        self._added = 0

    def begin(self, source: NoiseSource) -> Units:
        """Opens a step and draws its units, int64 (any size from 0 on,).

        Raises:
            PolicyError: one is open, the claim is used up, or the entropy was used before.
        """
        self._expect(Phase.CLOSED, "begin")
        if self.begun_steps == self._allowed_steps:
            raise PolicyError(
                f"expected at most the {self._allowed_steps} steps that were claimed, found one "
                "more: claim it in the ledger first"
            )
        if source.identity in self._entropy_seen:
            raise PolicyError("expected new entropy for every step, found that of an earlier one")
        drawn = self.terms.sampler.draw(source.sampling())
        self._entropy_seen.add(source.identity)
        self._source, self._waiting, self._added = source, set(drawn.tolist()), 0
        self.begun_steps += 1
        self.phase = Phase.OPEN
        return drawn

    def add(self, units: Units, clipped_sum: ClippedSum) -> None:
        """Lets `clipped_sum` add the clipped gradients of `units` to the total.

        Raises:
            PolicyError: no step is open, a unit was not drawn or was added before, or
                `clipped_sum` did not report one norm for every unit.
        """
        self._expect(Phase.OPEN, "add")
        named = units.tolist()
        if len(set(named)) != len(named) or not self._waiting.issuperset(named):
            raise PolicyError("add: expected drawn units, each once, found others; not added")
        self.phase = Phase.BROKEN  # until the part is whole
        norms = np.asarray(clipped_sum(self._total))
        if norms.shape != units.shape or (norms < 0).any():
            raise PolicyError(
                "add: expected one norm for every unit, found others: gradients of single units "
                "are not what was clipped; abandon this step"
            )
        self._waiting.difference_update(named)
        self._added += len(named)
        self.phase = Phase.OPEN

    def finish(self, gradient: Values) -> None:
        """Writes the noised mean over `gradient`, float32 (P,), and closes the step.

        Raises:
            PolicyError: no step is open, drawn units are missing, or the sum is larger than
                clipped gradients can be; nothing was written.
            ConfigError: `gradient` is another kind of array; the step stays open.
        """
        self._expect(Phase.OPEN, "finish")
        if self._waiting:
            raise PolicyError("finish: expected every drawn unit to be added, some are missing")
        if gradient.dtype != np.float32 or gradient.shape != self._total.shape:
            raise ConfigError(f"finish: expected {len(self._total)} values of float32 to write to")
        if np.may_share_memory(gradient, self._total):
            raise PolicyError("finish: expected a buffer of the caller, found that of the sum")
        self.phase = Phase.BROKEN  # noise is drawn once, whatever happens now
        self._check_norm()
        assert self._source is not None  # begin sets it
        scale, divisor = self.terms.noise_scale, float(self.terms.expected_units)
        noised_into(gradient, self._total, scale, divisor, self._source.noise())
        self.finished_steps += 1
        self._close()

    def abandon(self) -> None:
        """Drops an open or broken step. It releases nothing and stays counted as begun."""
        self._close()

    def _close(self) -> None:
        self._total.fill(0.0)
        self._source, self._waiting, self._added = None, set(), 0
        self.phase = Phase.CLOSED

    def _check_norm(self) -> None:
        squares = 0.0
        for start in range(0, len(self._total), _BLOCK):
            block = self._total[start : start + _BLOCK].astype(np.float64)
            squares += float(np.dot(block, block))
        bound = self._added * self.terms.most_norm
        if not squares <= bound * bound:
            raise PolicyError(
                "finish: expected a sum of clipped gradients, found a larger one: clipping did "
                "not happen; abandon this step and train no further"
            )

    def _expect(self, phase: Phase, call: str) -> None:
        if self.phase is not phase:
            raise PolicyError(
                f"{call}: expected a batch that is {phase.value}, found one that is "
                f"{self.phase.value}; a batch is begun, added to, and finished or abandoned"
            )
