"""Which measured points are worth a look: those that no other point beats in everything.

A point dominates another if it is at least as good in every objective and better in one. The
frontier is what nothing dominates (Pareto). A figure that was not measured counts as the worst
there is; so dominance stays a strict partial order, and a frontier is never empty.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

T = TypeVar("T")
Figures = Mapping[str, float]


class Sense(Enum):
    """Which way a figure is better."""

    MORE = "more"
    LESS = "less"


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure by name, and which way it is better."""

    name: str
    sense: Sense

    def of(self, figures: Figures) -> float:
        """The figure so that more is better; a skill below chance is none, not a merit."""
        value = figures.get(self.name)
        if value is None:
            return -math.inf
        return value if self.sense is Sense.MORE else -max(value, 0.0)


QUICK = (
    Objective("perplexity", Sense.LESS),
    Objective("zero_shot", Sense.LESS),
    Objective("bytes", Sense.LESS),
)
"""Before anything was tuned: how near the emulator is to the model, what it keeps, its size."""
FULL = (
    Objective("plug_in", Sense.MORE),
    Objective("healed", Sense.LESS),
    Objective("bytes", Sense.LESS),
)
"""What counts: the plug-in, what a thief has after healing, the size."""


def dominates(a: Figures, b: Figures, objectives: Sequence[Objective]) -> bool:
    """Whether `a` is at least as good as `b` everywhere and better somewhere."""
    pairs = [(objective.of(a), objective.of(b)) for objective in objectives]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def frontier(
    points: Sequence[T], figures_of: Callable[[T], Figures], objectives: Sequence[Objective]
) -> list[T]:
    """The points that no other dominates, in the order given; equal ones all stay."""
    figures = [figures_of(point) for point in points]
    return [
        point
        for point, own in zip(points, figures, strict=True)
        if not any(dominates(other, own, objectives) for other in figures)
    ]


@dataclass(frozen=True, slots=True)
class Breach:
    """A figure that is over its limit; infinite where it could not be measured."""

    name: str
    value: float
    limit: float

    @property
    def excess(self) -> float:
        """By which share of the limit it is over."""
        return (self.value - self.limit) / (self.limit or 1.0)

    def __str__(self) -> str:
        if self.value == math.inf:
            return f"{self.name}: at most {self.limit:g}, which could not be measured"
        if self.name == "bytes":
            return f"bytes: at most {self.limit:.0f}, found {self.value:.0f}"
        return f"{self.name}: at most {self.limit:g}, found {self.value:.4f}"


def breaches(figures: Figures, limits: Figures) -> tuple[Breach, ...]:
    """The figures that were measured and are over their limits."""
    return tuple(
        Breach(name, figures[name], limit)
        for name, limit in limits.items()
        if name in figures and figures[name] > limit
    )
