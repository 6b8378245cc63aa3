"""Made-up units for the sensitivity test: random ones, and those that broke other mechanisms.

    alone       one unit against no unit
    ragged      random rows of 2 tokens to the longest that the plan allows
    one_long    one row that learns everything among rows that learn one token: a mean over the
                tokens of the batch moves by 2 to 4 clip norms when it goes
    one_word    rows of one token repeated: the largest gradients, of quite different sizes
    equal       the same row again and again: gradients that add up to as many clip norms
    persons     units of several rows, whose gradient must be clipped once

They come from a fixed seed: they are no secret, and two proofs on one machine are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from offsite.emulator.privacy.proof.mechanism import Unit
from offsite.emulator.training.tokens import Example

_SEED = 20170731
_SHORT = 24
"""Tokens of rows whose length does not matter: the proof takes seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """Units, and which of them are left out, one at a time."""

    name: str
    units: tuple[Unit, ...]
    left_out: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the model and the plan allow."""

    vocabulary: int
    max_tokens: int


def cases(sizes: Sizes) -> tuple[Case, ...]:
    """Return every case, the smallest first."""
    maker = _Maker(sizes, np.random.default_rng(_SEED))
    long = maker.row(sizes.max_tokens, share=1.0)
    short = tuple((maker.row(2 + place % 2, share=0.0),) for place in range(5))
    words = tuple((maker.one_word(2 + 5 * place),) for place in range(4))
    ragged = tuple((maker.row(length),) for length in maker.lengths(5))
    persons = tuple(tuple(maker.row(n) for n in maker.lengths(3)) for _ in range(2))
    equal = (maker.row(_SHORT),)
    return (
        Case("alone", ((maker.row(_SHORT),),), (0,)),
        Case("equal", (equal,) * 4, (0,)),
        Case("one_word", words, (0, 3)),
        Case("persons", (*persons, *short[:1]), (0, 2)),
        Case("ragged", ragged, (0, 4)),
        Case("one_long", ((long,), *short), (0,)),
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    sizes: Sizes
    random: np.random.Generator

    def lengths(self, count: int) -> Iterator[int]:
        """From 2 tokens up, the last one the longest."""
        longest = min(_SHORT, self.sizes.max_tokens)
        return iter(np.linspace(2, longest, count).astype(int).tolist())

    def row(self, length: int, share: float = 0.5) -> Example:
        """Random tokens, of which a share is learnt, and the last one always."""
        size = min(max(length, 2), self.sizes.max_tokens)
        ids = self.random.integers(self.sizes.vocabulary, size=size, dtype=np.int32)
        learnt = self.random.random(size) < share
        learnt[0], learnt[-1] = False, True
        return Example(ids, learnt)

    def one_word(self, length: int) -> Example:
        example = self.row(length, share=1.0)
        return Example(np.full_like(example.ids, example.ids[0]), example.learnt)
