"""A seeded schedule of faults: at every named point it says whether something goes wrong there."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum


class CoordinatorKilled(BaseException):
    """Stands for `kill -9` of the coordinator: nothing handles it."""


class EdgeKilled(BaseException):
    """Stands for `kill -9` of an edge."""


class Cut(Exception):
    """The line went dead; both ends are alive."""


class Fault(Enum):
    KILL_COORDINATOR = "kill of the coordinator"
    KILL_EDGE = "kill of an edge"
    CUT = "cut of the line"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    CLOCK = "clock that jumps"


_RAISED = {
    Fault.KILL_COORDINATOR: CoordinatorKilled,
    Fault.KILL_EDGE: EdgeKilled,
    Fault.CUT: Cut,
}


@dataclass
class Weather:
    """Draws faults from a seed until there were `most`; then it is calm.

    Every point is asked in the order in which the campaign comes to it, and nothing else is random, so
    the same seed gives the same faults at the same points.
    """

    seed: int
    most: int
    rate: float = 0.04
    log: list[tuple[str, Fault]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def strikes(self, fault: Fault, point: str, times: float = 1.0) -> bool:
        """Whether this fault happens here; `times` as often as usual."""
        drawn = self.random.random() < self.rate * times
        if not drawn or len(self.log) >= self.most:
            return False
        self.log.append((point, fault))
        return True

    def may_end(self, fault: Fault, point: str, times: float = 1.0) -> None:
        """Raises what the fault does, if it happens here."""
        if self.strikes(fault, point, times):
            raise _RAISED[fault]

    def around(self, fault: Fault, name: str, call: Callable[..., object]) -> Callable[..., object]:
        """`call`, with a point before and one after it."""

        def called(*args: object, **kwargs: object) -> object:
            self.may_end(fault, f"before {name}")
            result = call(*args, **kwargs)
            self.may_end(fault, f"after {name}")
            return result

        return called

    def counts(self) -> Counter[Fault]:
        return Counter(fault for _, fault in self.log)


class Exposed:
    """An object of the coordinator, with a point before and after each call that writes."""

    WRITES = frozenset(
        {
            *("create", "set_state", "open_round", "set_plan", "close_round", "abandon_round"),
            *("add", "accept_reply", "delete_within", "keep", "forget"),
            *("write", "write_instruction", "erase"),
        }
    )

    def __init__(self, target: object, name: str, weather: Weather) -> None:
        self._target, self._name, self._weather = target, name, weather

    def __getattr__(self, name: str):
        found = getattr(self._target, name)
        if name not in self.WRITES:
            return found
        return self._weather.around(Fault.KILL_COORDINATOR, f"{self._name}.{name}", found)
