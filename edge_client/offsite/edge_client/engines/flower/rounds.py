"""The edge inside a campaign on Flower: one task of its SuperNode after the other.

    acquire ─> input ─> the run's bundle is ours? ─> the installed ClientApp ─> reply ─> SuperNode ─┐
       ^─────────────────────────────────────────────────────────────────────────────────────────────┘

The ClientApp is the one of `run_worker`, warm between rounds; the bundle that a run of Flower brings
along is never unpacked, only its digest is compared. Whether the campaign is over, and that this edge
is there, is said over our own service (`pulse`), as on the other engine.

What is weaker than on `grpc`: a SuperNode keeps its messages in memory. One that is killed while this
edge tunes loses the message, and the update with it; the round goes on without this edge, and the
next attempt is another message. The ledger of privacy charges both.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flwr.app import Context, Error, Message, RecordDict

from offsite.edge_client.engines.flower.supernode import SuperNode
from offsite.edge_client.inbox import ROUND_FOLDER, Inbox
from offsite.edge_client.state import EdgeState
from offsite.edge_client.worker import App, CampaignEnd, Edge, Ending, public_text
from offsite.emulator.durable import FOLDER_MODE, machine_errors
from offsite.emulator.engines.flower.fab import fab_sha256
from offsite.emulator.rounds.flower_internals import CLIENT_APP_RAISED, quieten
from offsite.secure.errors import PeerError, StaleReleaseError, TransportError
from offsite.secure.names import node_id
from offsite.v1 import rounds_pb2 as pb

if TYPE_CHECKING:
    from offsite.emulator.engines.flower.internals import ClientInput, ClientTask

LOOK_S: Final = 0.1
"""Between two looks for a task: a call to a process on this machine."""
SILENCE_S: Final = 600.0
"""As long as `WORKER_RETRIES` on the other engine: time enough to restart a coordinator."""
NO_MESSAGE: Final = ""
"""While rounds travel by Flower there is no message on our own service that could be withdrawn."""

_log = logging.getLogger(__name__)


def run_flower_rounds(edge: Edge, client_app: App, state: EdgeState) -> CampaignEnd | None:
    """Works until the campaign ends; None if a pause was due, or another release, before.

    Raises:
        TransportError: the coordinator stayed away; the next call goes on.
        IdentityError: this edge was revoked, or its certificate has lapsed.
    """
    quieten()
    inbox = Inbox(edge.rounds)
    inbox.erase_others(None)  # a SuperNode that was killed forgot them, too
    with edge.pulse.beating(NO_MESSAGE), SuperNode(state, edge.channel) as node:
        while edge.pulse.over is None and not edge.pause_due():
            _check_line(node)
            task = node.next_task()
            if task is None:
                edge.pulse.say("waiting")
                edge.pause(LOOK_S)
                continue
            with task:
                if not _do(edge, inbox, client_app, task, node):
                    return None
    return None if edge.pulse.over is None else _end(edge.pulse.over)


def _check_line(node: SuperNode) -> None:
    node.shim.check()
    if node.shim.silent_s > SILENCE_S:
        raise TransportError(
            f"no answer from the coordinator for {SILENCE_S / 60:.0f} minutes; run the same command "
            "again when it is back"
        )


def _do(edge: Edge, inbox: Inbox, client_app: App, task: "ClientTask", node: SuperNode) -> bool:
    """One message; False if another release is to be fetched first."""
    try:
        given = task.pull()
        reply, goes_on = _reply(edge, inbox, client_app, given)
        edge.pulse.say("sending")
        task.push(reply)
    except (TransportError, PeerError) as error:
        # A SuperNode waits for the reply to a message for ever: the next one begins afresh.
        _log.warning("a message of Flower was lost: %s", error)
        node.child.restart()
        return True
    finally:
        inbox.erase_others(None)
    inbox.count_returned(given.message.metadata.message_id)
    return goes_on


def _reply(edge: Edge, inbox: Inbox, client_app: App, given: "ClientInput") -> tuple[Message, bool]:
    """What the installed app answers, or a Flower error in its place."""
    message = given.message
    try:
        if given.fab_sha256 != fab_sha256():
            raise PeerError("expected the run of the installed app, found one with other code")
        folder = inbox.of(message.metadata.message_id)
        with machine_errors(folder):
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        return client_app(message, _context(edge, message, folder)), True
    except StaleReleaseError as error:
        edge.ears.say(f"another release was published: {error}")
        return _error(message, error), False
    except Exception as error:  # noqa: BLE001 - whatever it is, the next round may succeed
        _log.error("the round failed on this edge", exc_info=error)
        edge.ears.say(f"the round failed on this edge: {error}")
        return _error(message, error), True


def _context(edge: Edge, message: Message, folder: Path) -> Context:
    return Context(
        run_id=message.metadata.run_id,
        node_id=node_id(edge.client_id),
        node_config={ROUND_FOLDER: str(folder.resolve())},
        state=RecordDict(),
        run_config={},
    )


def _error(message: Message, error: Exception) -> Message:
    return Message(Error(CLIENT_APP_RAISED, public_text(error)), reply_to=message)


def _end(answer: pb.AwaitResponse) -> CampaignEnd:
    failed = answer.phase == pb.CAMPAIGN_PHASE_FAILED
    return CampaignEnd(Ending.FAILED if failed else Ending.ENDED, answer.reason)
