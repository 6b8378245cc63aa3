"""Time that costs nothing: it jumps to the next moment at which anything happens.

`SimulatedGrid` is the `local` engine with one difference: a reply is there only once it has
arrived. When that is, is known when the instruction is sent (`Journey`); an instruction whose
reply would come after its time to live, or never, is never worked on. A waiting coordinator moves
the clock to the next arrival or to the next end of an instruction's time, so a deadline of a day
passes in no time, and no poll changes what happens.

A client does its work at the moment the instruction reaches it, by its own clock; what it sends
then is under way for as long as tuning and the line are said to take."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.clientapp import ClientApp

from offsite.coordinator.local_grid import LocalGrid

LEAST_PAUSE_S = 1e-3
Journey = Callable[[Message], float | None]
"""Seconds from an instruction to its reply; None: there is none."""
Prepare = Callable[[Sequence[Message]], None]
"""Told of the instructions of one sending that will be answered in time, before any of them is."""


@dataclass(slots=True)
class SimulatedClock:
    """Now, for the coordinator and for the client at work."""

    now: float
    at_work: float | None = None

    def __call__(self) -> float:
        """The coordinator's time."""
        return self.now

    def of_client(self) -> float:
        """The time of the client whose turn it is."""
        return self.now if self.at_work is None else self.at_work


@dataclass(slots=True)
class _Sent:
    """An instruction under way."""

    sent_s: float
    ends_s: float
    arrives_s: float | None
    """When the reply is there; None: not in time."""
    is_delivered: bool = False

    def next_s(self) -> float:
        return self.ends_s if self.arrives_s is None else self.arrives_s


@dataclass(slots=True)
class Line:
    """What lies between coordinator and clients: how long it takes, and who is told before."""

    clock: SimulatedClock
    journey: Journey
    prepare: Prepare = lambda instructions: None
    sent: dict[str, _Sent] = field(default_factory=dict)

    def pause(self, seconds: float) -> None:
        """The coordinator waits: to the next thing that happens, or as long where nothing will."""
        now = self.clock.now
        coming = [s.next_s() for s in self.sent.values() if not s.is_delivered and s.next_s() > now]
        self.clock.now = min(coming, default=now + max(seconds, LEAST_PAUSE_S))


class SimulatedGrid(LocalGrid):
    """The `local` engine in simulated time."""

    def __init__(self, apps: dict[int, ClientApp], line: Line, run_id: int = 1) -> None:
        super().__init__(apps, run_id)
        self._line = line

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; who answers, and when, is settled now."""
        kept = list(messages)
        ids = list(super().push_messages(kept))
        now = self._line.clock.now
        in_time = []
        for message_id, message in zip(ids, kept, strict=True):
            ends, takes = now + message.metadata.ttl, self._line.journey(message)
            arrives = None if takes is None or now + takes > ends else now + takes
            self._line.sent[message_id] = _Sent(now, ends, arrives)
            if arrives is not None:
                in_time.append(message)
        self._line.prepare(in_time)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived by now."""
        there = [i for i in message_ids if self._has_arrived(i)]
        for message_id in there:
            self._line.sent[message_id].is_delivered = True
        return super().pull_messages(there)

    def close(self, group_id: str) -> None:
        super().close(group_id)
        for message_id in [i for i in self._line.sent if i not in self._instructions]:
            del self._line.sent[message_id]

    def _has_arrived(self, message_id: str) -> bool:
        sent = self._line.sent.get(message_id)
        return (
            sent is not None
            and sent.arrives_s is not None
            and sent.arrives_s <= self._line.clock.now
        )

    def _answer(self, message_id: str) -> bytes:
        clock = self._line.clock
        clock.at_work = self._line.sent[message_id].sent_s
        try:
            return super()._answer(message_id)
        finally:
            clock.at_work = None
