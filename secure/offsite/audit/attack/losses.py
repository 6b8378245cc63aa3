"""Losses of rows, before and after tuning: all that an attack looks at.

A *unit* is what the privacy claim is about: the examples of one row, or of all rows of a person.
Its loss is that of all its learnt tokens together. How it is measured: `forward`.

Axes: ``U`` units.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offsite.audit.attack.intervals import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Of every unit: the sum of -ln p over its learnt tokens, and how many these are; both [U]."""

    nats: Floats
    tokens: Floats

    @property
    def per_token(self) -> Floats:
        """Mean of -ln p, [U]."""
        found: Floats = self.nats / self.tokens
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Losses of the same units before and after tuning."""

    before: Losses
    after: Losses

    def __len__(self) -> int:
        return len(self.before.nats)

    def take(self, places: npt.NDArray[np.int64]) -> "Pair":
        """Of some of the units alone."""
        before, after = (
            Losses(found.nats[places], found.tokens[places]) for found in (self.before, self.after)
        )
        return Pair(before, after)
