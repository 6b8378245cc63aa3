"""The edge inside a campaign: one instruction after the other until the campaign ends.

    await ─> fetch instruction ─> ClientApp ─> write reply ─> upload ─> erase ─┐
      ^────────────────────────────────────────────────────────────────────────┘

Killed at any step, the same command goes on: a reply that is there is only sent, an instruction is
tuned on from its own checkpoint (see `inbox.py`).

Rules it enforces:

* a round that fails on this edge does not end it: the coordinator gets a Flower `Error` and the
  edge waits for the next instruction;
* that error tells nothing of the data owner's rows, paths or settings; those stay in the log;
* a reply that is too late is dropped, not sent again; an edge that was revoked stops;
* a reply is dropped only after the coordinator answered this edge: one whose certificate has lapsed
  hears that something expired too, and keeps what it has;
* a coordinator that answers at once, with nothing to do, is asked once a second at most;
* an edge that hears of the campaign's end while it tunes sends nothing and ends.
"""

import enum
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from flwr.app import Context, Error, Message, RecordDict

from offsite.edge_client.inbox import ROUND_FOLDER, Inbox, fetch_instruction
from offsite.edge_client.pulse import OVER, Pulse
from offsite.edge_client.resume import WORKER_RETRIES, Persistence
from offsite.edge_client.state import LAPSED
from offsite.edge_client.upload import Reply, upload_reply
from offsite.emulator.durable import write_atomic
from offsite.emulator.progress import Report, silent
from offsite.emulator.rounds.exchange import Action
from offsite.emulator.rounds.flower_internals import CLIENT_APP_RAISED
from offsite.emulator.rounds.messages import message_from_bytes, message_to_bytes
from offsite.secure import limits
from offsite.secure.errors import (
    ExpiredError,
    IdentityError,
    PeerError,
    PolicyError,
    SitsOutError,
    StaleReleaseError,
    TermsRefusedError,
)
from offsite.secure.names import node_id
from offsite.v1 import rounds_pb2 as pb
from offsite.v1 import rounds_pb2_grpc as pb_grpc

TRIES_PER_MESSAGE: Final = 3
"""How often one instruction may be refused, or its reply, before the edge gives up."""

FAILED_TEXT: Final = "the round failed on this edge; its log says why"
"""All that the coordinator learns of an error that is about this edge."""

LEAST_WAIT_S: Final = 1.0
"""Time between two questions that were answered with nothing to do."""

FETCHED_AGAIN: Final = "fetched-again"
"""Marks a message for which the release was fetched again."""

App = Callable[[Message, Context], Message]

_log = logging.getLogger(__name__)


class Ending(enum.Enum):
    """How a campaign ended."""

    ENDED = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class CampaignEnd:
    """How and why, in the coordinator's words."""

    ending: Ending
    reason: str


@dataclass(frozen=True, slots=True)
class Ears:
    """Who is told what the worker does, beside the coordinator."""

    say: Callable[[str], None] = lambda text: None
    receiving: Report = silent
    sending: Report = silent


@dataclass(frozen=True, slots=True)
class Edge:
    """What a worker works with; `rounds` is the folder of `inbox.py`."""

    channel: grpc.Channel
    client_id: str
    rounds: Path
    pulse: Pulse
    ears: Ears = field(default_factory=Ears)
    persistence: Persistence = field(default_factory=lambda: Persistence(WORKER_RETRIES))
    pause_due: Callable[[], bool] = lambda: False
    """Asked between rounds; True ends the work, to be taken up again on a new channel."""
    pause: Callable[[float], None] = time.sleep
    """Waits so many seconds."""
    clock: Callable[[], float] = time.monotonic


def run_worker(edge: Edge, client_app: App) -> CampaignEnd | None:
    """Works until the campaign ends; None if a pause was due, or another release, before.

    Raises:
        TransportError: the coordinator stayed away; the next call goes on.
        IdentityError: this edge was revoked, or its certificate has lapsed.
        PeerError: the coordinator keeps sending what cannot be obeyed.
    """
    inbox, tries, waiting = Inbox(edge.rounds), _Tries(), _Waiting(edge.ears)
    # (1) Replies from before a kill.
    for message_id in inbox.unsent():
        _send(edge, inbox, message_id, tries)
    while not edge.pause_due():
        # (2) The next instruction, or the end.
        asked_s = edge.clock()
        waiting.say()
        answer = _next(edge)
        tries.erase_late(edge, inbox)
        if answer.phase in OVER:
            return _end(inbox, answer)
        waiting.hear(answer)
        if not answer.HasField("instruction"):
            if edge.clock() - asked_s < LEAST_WAIT_S:
                edge.pause(LEAST_WAIT_S)
            continue
        message_id = answer.instruction.message_id
        inbox.erase_others(message_id)
        try:
            # (3) to (4) Fetched, answered, on the disk.
            waiting.is_sum_open = _answer(edge, inbox, answer.instruction, client_app)
        except StaleReleaseError as error:
            edge.ears.say(f"another release was published: {error}")
            return None
        except PeerError as error:
            tries.refused(message_id, error)
            continue
        # (5) Sent, unless the campaign ended meanwhile.
        if edge.pulse.over is not None:
            return _end(inbox, edge.pulse.over)
        _send(edge, inbox, message_id, tries)
    return None


def _next(edge: Edge) -> pb.AwaitResponse:
    stub = pb_grpc.RoundServiceStub(edge.channel)
    edge.pulse.say("waiting")

    def ask() -> pb.AwaitResponse:
        return stub.Await(edge.pulse.request(), timeout=limits.LONG_POLL_S + limits.CALL_DEADLINE_S)

    try:
        return edge.persistence.run(ask)
    except ExpiredError as error:  # waiting has no deadline, so it is this
        raise IdentityError(LAPSED) from error


def _end(inbox: Inbox, answer: pb.AwaitResponse) -> CampaignEnd:
    inbox.erase_others(None)
    failed = answer.phase == pb.CAMPAIGN_PHASE_FAILED
    return CampaignEnd(Ending.FAILED if failed else Ending.ENDED, answer.reason)


def _answer(edge: Edge, inbox: Inbox, ref: pb.MessageRef, client_app: App) -> bool:
    """Leaves the complete reply in the inbox; returns whether more steps of a sum will follow."""
    if inbox.reply(ref.message_id).is_file():
        return True
    path = fetch_instruction(edge.channel, inbox, ref, edge.persistence, edge.ears.receiving)
    instruction = message_from_bytes(path.read_bytes())
    with edge.pulse.beating(ref.message_id):
        reply = _call(edge, client_app, instruction, path.parent)
        inbox.write_reply(ref.message_id, message_to_bytes(reply))
    is_last = instruction.metadata.message_type == Action.REVEAL.message_type
    return not is_last and not reply.has_error()


def _call(edge: Edge, client_app: App, instruction: Message, folder: Path) -> Message:
    """The ClientApp's reply, or a Flower error in its place.

    Raises:
        StaleReleaseError: it is for another release; once, for a second fetch would not help.
    """
    context = Context(
        run_id=instruction.metadata.run_id,
        node_id=node_id(edge.client_id),
        node_config={ROUND_FOLDER: str(folder.resolve())},
        state=RecordDict(),
        run_config={},
    )
    try:
        return client_app(instruction, context)
    except StaleReleaseError as error:
        if _is_first(folder / FETCHED_AGAIN):
            raise
        return _failed(edge, instruction, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next round may succeed
        return _failed(edge, instruction, error)


def _failed(edge: Edge, instruction: Message, error: Exception) -> Message:
    _log.error("the round failed on this edge", exc_info=error)
    edge.ears.say(f"the round failed on this edge: {error}")
    return Message(Error(CLIENT_APP_RAISED, public_text(error)), reply_to=instruction)


def _is_first(marker: Path) -> bool:
    """Whether this is the first time that it is asked, also across kills."""
    if marker.exists():
        return False
    write_atomic(marker, b"")
    return True


def public_text(error: Exception) -> str:
    """What the coordinator may know of an error on this edge.

    What came from the coordinator may be named, and of the terms of a sum which ones were refused,
    but not what is demanded here. Any other message may quote the owner's data, paths or settings,
    and so does its class where a template of the coordinator can choose it: both stay here. So does
    everything about a limit of privacy: how many steps would fit tells how many rows there are.
    """
    if isinstance(error, TermsRefusedError):
        return f"{type(error).__name__}: {error.public}"[:500]
    if isinstance(error, SitsOutError):
        return f"{type(error).__name__}: {error.PUBLIC}"
    if isinstance(error, PeerError | PolicyError):
        return f"{type(error).__name__}: {error}"[:500]
    return FAILED_TEXT


def _send(edge: Edge, inbox: Inbox, message_id: str, tries: "_Tries") -> None:
    """Uploads a reply and erases its folder, also when nobody wants it any more.

    One that is called too late stays until the coordinator has answered this edge something else.
    """
    edge.pulse.say("sending")
    reply = Reply.of(message_id, inbox.reply(message_id))
    try:
        upload_reply(edge.channel, reply, edge.persistence, edge.ears.sending)
    except ExpiredError as error:
        tries.late[message_id] = error
        return
    except PeerError as error:
        tries.refused(message_id, error)
    else:
        inbox.count_returned(message_id)
    inbox.erase(message_id)


def _why_nothing(answer: pb.AwaitResponse) -> str:
    if answer.misfit:
        return f"the coordinator does not ask this edge: {answer.misfit}"
    if answer.phase == pb.CAMPAIGN_PHASE_PAUSED:
        return f"the campaign is {answer.reason or 'paused'}"
    return f"the coordinator says: {answer.reason}" if answer.reason else ""


class _Waiting:
    """Says what the edge waits for, once: between the steps of a sum it waits every few seconds."""

    def __init__(self, ears: Ears) -> None:
        self.is_sum_open = False
        self._ears = ears
        self._said = self._heard = ""

    def say(self) -> None:
        text = "waiting for the other edges" if self.is_sum_open else "waiting for the next round"
        if text != self._said:
            self._ears.say(text)
        self._said = text

    def hear(self, answer: pb.AwaitResponse) -> None:
        """Why there is nothing to do, where the coordinator says so."""
        text = "" if answer.HasField("instruction") else _why_nothing(answer)
        if text and text != self._heard:
            self._ears.say(text)
        self._heard = text


class _Tries:
    """Remembers refusals per message, so that a mistake on either side cannot loop for ever."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.late: dict[str, ExpiredError] = {}
        """Replies that something was too late for: themselves, or this edge's certificate."""

    def erase_late(self, edge: Edge, inbox: Inbox) -> None:
        """To be called after an answer of the coordinator: the certificate is good."""
        for message_id, error in self.late.items():
            edge.ears.say(f"too late: {error}")
            _log.warning("reply to %s was too late: %s", message_id, error)
            inbox.erase(message_id)
        self.late.clear()

    def refused(self, message_id: str, error: PeerError) -> None:
        """Raises the error if it is about this edge itself, or came too often."""
        self._counts[message_id] = self._counts.get(message_id, 0) + 1
        if isinstance(error, IdentityError) or self._counts[message_id] >= TRIES_PER_MESSAGE:
            raise error
        _log.warning("message %s: %s", message_id, error)
