"""Which units take part in a step: true Poisson sampling at an exact rational rate.

Every unit is in with probability q = a/b, independently of all others and of all other steps. The
decision compares a uniform number in [0, 1), read 64 bits at a time, with q: a word below the
first 64 bits of q is in, above is out, and an equal one (once in 2^64) is decided by the bits that
follow. So the probability is a/b itself and not the double next to it.

*Truncated.* For a hard cap on a batch: draw as above, and of a batch beyond the cap keep a random
subset of that size, every subset equally likely. That is `TruncatedSubsampledGaussianDpEvent` of
dp_accounting 0.6 (arXiv 2508.15089).

Shuffling and fixed batch sizes are not offered: at sigma 0.8 an epoch of 1000 shuffled batches
costs at least 17 times the epsilon that Poisson accounting claims. Who took part, and how many, is
secret: it never leaves the machine, no error message tells it, and an empty batch is a step like
any other.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError
from offsite.secure.privacy.randomness.uniform import WordSource

Units = NDArray[np.int64]

_BLOCK: Final = 1 << 16
_WORD: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class PoissonSampler:
    """Every one of `units` units is in with probability `sampling`."""

    units: int  # records or persons in the data set
    sampling: Fraction  # q, in (0, 1]

    def __post_init__(self) -> None:
        _check(self.units, self.sampling)

    def draw(self, stream: WordSource) -> Units:
        """The units of one step, int64 (any size from 0 on,), ascending."""
        blocks = range(0, self.units, _BLOCK)
        drawn = [
            start + np.flatnonzero(_trials(self.sampling, min(_BLOCK, self.units - start), stream))
            for start in blocks
        ]
        return np.concatenate(drawn)


@dataclass(frozen=True, slots=True)
class TruncatedPoissonSampler:
    """A Poisson sample of which at most `cap` units, a uniformly random subset, are kept."""

    units: int
    sampling: Fraction
    cap: int  # units, 1 or more

    def __post_init__(self) -> None:
        _check(self.units, self.sampling)
        if self.cap < 1:
            raise ConfigError(f"sampling: expected a cap of 1 or more, found {self.cap}")

    def draw(self, stream: WordSource) -> Units:
        """The units of one step, int64 (0 to `cap`,), ascending."""
        drawn = PoissonSampler(self.units, self.sampling).draw(stream)
        return drawn if len(drawn) <= self.cap else np.sort(_subset(drawn, self.cap, stream))


Sampler = PoissonSampler | TruncatedPoissonSampler


def _check(units: int, sampling: Fraction) -> None:
    if units < 1:
        raise ConfigError(f"sampling: expected 1 unit or more, found {units}")
    if not isinstance(sampling, Fraction):
        raise ConfigError(
            f"sampling: expected an exact Fraction as rate, found {type(sampling).__name__}"
        )
    if not 0 < sampling <= 1:
        raise ConfigError(
            "sampling: expected a rate above 0 and at most 1, found another: the expected batch "
            "cannot be larger than the data"
        )


def _trials(rate: Fraction, count: int, stream: WordSource) -> NDArray[np.bool_]:
    """`count` independent events of probability exactly `rate`."""
    if rate == 1:
        return np.ones(count, np.bool_)
    first = math.floor(rate * _WORD)
    words = stream.words(count)
    chosen = words < np.uint64(first)
    following = rate * _WORD - first
    tied = np.flatnonzero(words == np.uint64(first))
    if len(tied) and following:
        chosen[tied] = _trials(following, len(tied), stream)
    return chosen


def _subset(units: Units, size: int, stream: WordSource) -> Units:
    """`size` of the units, every subset equally likely: those with the least of distinct words."""
    while True:
        words = stream.words(len(units))
        if len(np.unique(words)) == len(units):
            return units[np.argsort(words)[:size]]
