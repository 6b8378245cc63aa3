"""`edge-client join`: everything a data owner does, in one command that can always be repeated.

(1) read the data, so that a wrong file is found before anything else happens
(2) enrol with the token, or remember the enrolment
(3) fetch the release, verify every chunk, then the whole
(4) tune and return, round after round, until the campaign ends
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from offsite.edge_client.channel import open_channel
from offsite.edge_client.client_app import Listener, Machine, Member, build_client_app
from offsite.edge_client.data import read_data
from offsite.edge_client.enrol import enrol, refresh_directory, renew_if_due
from offsite.edge_client.fetch import Source, fetch_release
from offsite.edge_client.outcome import TuningMetrics
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.state import EdgeState, Membership
from offsite.edge_client.worker import Ears, Edge, Ending, run_worker
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.report import describe, render
from offsite.emulator.rounds.plan import RoundPlan
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import TransportError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.token import JoinToken

PROGRESS_S = 10.0
"""How often a line says how far tuning is."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What the command line said."""

    token: str
    data: Path
    state: Path
    threads: int
    inspect_only: bool


def join_campaign(request: JoinRequest, terminal: Terminal) -> None:
    """Works until the campaign ends.

    Raises:
        TransportError: the coordinator stayed away, or the campaign failed.
    """
    token = JoinToken.parse(_token_text(request.token))
    # (1) The data.
    data = read_data(request.data)
    for line in data.report.lines():
        terminal.note(line)
    with EdgeState.open(request.state) as state:
        _log_into(state)
        # (2) The membership.
        membership = enrol(token, state)
        terminal.note(f"joined as {membership.client_id}, coordinator at {membership.address}")
        renew_if_due(state)
        with open_channel(state) as channel:
            coordinator = refresh_directory(channel, state).coordinator()
            # (3) The release.
            bundle = _fetch(channel, state, coordinator.identity_key, terminal)
            if request.inspect_only:
                document = describe(bundle, time.time(), coordinator.identity_key)
                terminal.result(render(document), document)
                return
            # (4) The rounds.
            edge = _edge(channel, state, membership, terminal)
            app = build_client_app(
                bundle,
                data,
                Member(membership.client_id, state.identity_key(), coordinator.identity_key),
                state.rounds,
                listener=_listener(edge.pulse, terminal),
                machine=Machine(threads=request.threads),
            )
            end = run_worker(edge, app)
    if end.ending is Ending.FAILED:
        raise TransportError(f"the campaign failed: {end.reason}")
    terminal.result(
        f"the campaign has ended: {end.reason}",
        {"client": membership.client_id, "ending": end.ending.name.lower(), "reason": end.reason},
    )


def _token_text(given: str) -> str:
    """The token itself, or what stands in the file of that name."""
    path = Path(given)
    if given.startswith("offsite1.") or not _is_file(path):
        return given.strip()
    return path.read_text(encoding="utf-8").strip()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a token may be longer than a file name can be
        return False


def _log_into(state: EdgeState) -> None:
    """Details of what fails stay on this machine, in `edge.log`."""
    handler = logging.FileHandler(state.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("offsite")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False


def _fetch(
    channel: grpc.Channel, state: EdgeState, coordinator_key: IdentityPublicKey, terminal: Terminal
) -> Bundle:
    source = Source(channel, coordinator_key, time.time())
    with terminal.progress("fetching bytes") as report, terminal.progress("checking") as check:
        bundle = fetch_release(source, state.bundle, report=report, report_check=check)
    facts = bundle.manifest.facts
    terminal.note(
        f"release {facts.release_version} of {facts.base_model}, "
        f"{bundle.manifest.bundle_bytes} bytes, verified"
    )
    return bundle


def _edge(
    channel: grpc.Channel, state: EdgeState, membership: Membership, terminal: Terminal
) -> Edge:
    return Edge(channel, membership.client_id, state.rounds, Pulse(channel), Ears(terminal.note))


def _listener(pulse: Pulse, terminal: Terminal) -> Listener:
    """Tells the person what happens here, and the coordinator no more than a few words."""

    def status(text: str) -> None:
        pulse.say(text)
        terminal.note(text)

    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            status(f"{done} of {total}")

    def tuned(plan: RoundPlan, metrics: TuningMetrics) -> None:
        terminal.note(
            f"round {plan.round} of {plan.total_rounds}: {metrics.steps} steps on "
            f"{metrics.examples} examples in {metrics.seconds:.0f} s, loss "
            f"{metrics.first_loss:.3f} to {metrics.last_loss:.3f}"
        )

    return Listener(status=status, progress=progress, tuned=tuned, between_steps=pulse.check)
