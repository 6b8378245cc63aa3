"""Sources and streams for the tests of randomness. Every entropy is a constant; nothing is drawn."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from offsite.secure.privacy.randomness.gaussian import noised_into
from offsite.secure.privacy.randomness.source import NoiseSource
from offsite.secure.privacy.randomness.uniform import Words64

FALSE_ALARM = 1e-9
"""Of one test function, all its comparisons together."""
MISS = 1e-9
"""Chance that a defect which a test says it finds goes unfound."""


def entropy(*names: object) -> bytes:
    return hashlib.sha256(repr(names).encode()).digest()


def source(*names: object) -> NoiseSource:
    return NoiseSource(entropy(*names), repr(names).encode())


def release(origin: NoiseSource, values: int, scale: float) -> NDArray[np.float64]:
    """What a step without gradients releases, its noise alone."""
    out = np.empty(values, np.float32)
    noised_into(out, np.zeros(values, np.float32), scale, 1.0, origin.noise())
    return out.astype(np.float64)


class Scripted:
    """A word source that says what it was told."""

    def __init__(self, *answers: Words64) -> None:
        self.answers = list(answers)

    def words(self, count: int) -> Words64:
        answer = self.answers.pop(0)
        assert len(answer) == count
        return answer
