"""Tells the coordinator that this edge lives while it is busy tuning.

While an edge waits, its long poll says so; while it tunes, a thread asks `Await` now and then and
says in a few words what is going on. The answer also says whether the instruction at hand is still
open, and whether the campaign is over: then there is no need to tune to the end, and nobody may be
there later to say so again.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import grpc

from offsite.edge_client.facts import Facts
from offsite.secure import limits
from offsite.secure.errors import ExpiredError
from offsite.v1 import rounds_pb2 as pb
from offsite.v1 import rounds_pb2_grpc as pb_grpc

STATUS_CHARS: Final = 200
OVER: Final = frozenset({pb.CAMPAIGN_PHASE_ENDED, pb.CAMPAIGN_PHASE_FAILED})
_GLANCE_S: Final = 0.1


class Pulse:
    """What the edge is doing, told every `interval_s` seconds while it is busy."""

    def __init__(
        self,
        channel: grpc.Channel,
        facts: Facts | None = None,
        interval_s: float = limits.LONG_POLL_S,
    ) -> None:
        """`facts`: what the edge states of itself; None: nothing new."""
        self._facts = None if facts is None else facts.to_message()
        self._stub = pb_grpc.RoundServiceStub(channel)
        self._interval_s = interval_s
        self._status = "starting"
        self._withdrawn = threading.Event()
        self._idle = threading.Event()
        self._over: pb.AwaitResponse | None = None

    @property
    def over(self) -> pb.AwaitResponse | None:
        """The answer that said that the campaign is over, if one did while the edge was busy."""
        return self._over

    @property
    def status(self) -> str:
        """The words that are told next."""
        return self._status

    def say(self, status: str) -> None:
        """What the edge does now, for the operator of the coordinator: no secrets, no data."""
        self._status = status[:STATUS_CHARS]

    def request(self) -> pb.AwaitRequest:
        """What is told now."""
        return pb.AwaitRequest(status=self._status, facts=self._facts)

    def check(self) -> None:
        """To be called between steps.

        Raises:
            ExpiredError: round or campaign are over; the reply would not be taken.
        """
        if self._over is not None:
            raise ExpiredError("the campaign ended meanwhile: nobody waits for this update")
        if self._withdrawn.is_set():
            raise ExpiredError("the round was closed meanwhile: it goes on without this edge")

    @contextmanager
    def beating(self, message_id: str) -> Iterator[None]:
        """Beats in a thread while the work on a message goes on inside."""
        self._withdrawn.clear()
        self._idle.clear()
        thread = threading.Thread(
            target=self._beat, args=(message_id,), name="offsite-pulse", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._idle.set()
            thread.join()

    def _beat(self, message_id: str) -> None:
        while not self._idle.is_set():
            answered = threading.Event()
            call = self._stub.Await.future(
                self.request(),
                timeout=limits.LONG_POLL_S + limits.CALL_DEADLINE_S,
            )
            call.add_done_callback(partial(_note, answered))
            while not answered.wait(_GLANCE_S) and not self._idle.is_set():
                pass
            if not answered.is_set():
                call.cancel()  # the work is done
            # A beat that did not arrive does not matter.
            elif call.code() is grpc.StatusCode.OK:
                self._hear(call.result(), message_id)
                self._idle.wait(self._interval_s)
            else:
                self._idle.wait(limits.RETRY_CAP_S)

    def _hear(self, answer: pb.AwaitResponse, message_id: str) -> None:
        if answer.phase in OVER:
            self._over = answer
        if answer.instruction.message_id != message_id:
            self._withdrawn.set()


def _note(answered: threading.Event, call: object) -> None:
    answered.set()
