"""`coordinator serve`: the service in its thread, the campaign in this one.

(1) open the state folder under its lock; verify the release
(2) serve enrolment, the release and the messages of the rounds
(3) run the campaign, or go on with the one that was interrupted
(4) write the report, tell the edges that it ended or failed, stop

A signal stops it in order (`service.draining`); the same command goes on.

The terminal shows one line for whatever happens; `serve.log` in the state folder also has the
tracebacks.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from offsite.coordinator.authority import Authority
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import Campaign, CoordinatorKeys, Member, SecureParts
from offsite.coordinator.campaign_record import CampaignRecord, CampaignResult
from offsite.coordinator.engines.engine import Engine, opened_engine
from offsite.coordinator.gatekeeper import Gatekeeper
from offsite.coordinator.keys import ServerCertificate
from offsite.coordinator.leases import silent_s
from offsite.coordinator.mailbox import CampaignStatus, Mailbox, Phase
from offsite.coordinator.owner_inputs import corrector_for, gate_of, load_model
from offsite.coordinator.receipts import Receipts
from offsite.coordinator.release import current_release, settings_unlike
from offsite.coordinator.service.artefacts import ArtefactService
from offsite.coordinator.service.draining import drained
from offsite.coordinator.service.enrolment import EnrolmentService
from offsite.coordinator.service.fleet import FleetService
from offsite.coordinator.service.ledgers import LedgerService
from offsite.coordinator.service.quotas import Quotas
from offsite.coordinator.service.rounds import RoundService
from offsite.coordinator.service.server import RunningServer, ServerTls, start_server
from offsite.coordinator.spool import Spool
from offsite.coordinator.store import Store
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.coordinator.workspace_campaign import record_of
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.durable import FILE_MODE, machine_errors, write_atomic
from offsite.emulator.printable import printable
from offsite.emulator.rounds.vector import value_count
from offsite.emulator.settings import to_tables
from offsite.emulator.terminal import Terminal
from offsite.secure import envelope, limits
from offsite.secure.directory import Role, Status
from offsite.secure.errors import OffsiteError
from offsite.secure.names import node_id
from offsite.v1.artefacts_pb2_grpc import add_ArtefactServiceServicer_to_server
from offsite.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server
from offsite.v1.fleet_pb2_grpc import add_FleetServiceServicer_to_server
from offsite.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from offsite.v1.rounds_pb2_grpc import add_RoundServiceServicer_to_server

LOG_BYTES: Final = 16 * limits.MIB
"""Of `serve.log`; a full one is kept as `serve.log.1` until the next is full."""
FAREWELL_S = 30.0
"""How long the service waits for edges to hear that the campaign ended."""


def serve_campaign(root: Path, overrides: Sequence[str], stay: bool, terminal: Terminal) -> None:
    """Serves until the campaign has ended; with `stay`, until it is interrupted.

    Raises:
        ConfigError: there is no release, or it has expired.
        TransportError: the campaign failed; the edges were told.
    """
    with (
        open_workspace(root, overrides, exclusive=True) as workspace,
        _logging(terminal, workspace.state.root / "serve.log"),
    ):
        # (1) The release.
        bundle = current_release(workspace)
        if changed := settings_unlike(workspace.config, bundle.manifest):
            terminal.note(
                f"the release was made with another {', '.join(changed)} than the settings name; "
                "it is what counts: run `coordinator emulate` to change it"
            )
        # (2) The service.
        authority = Authority(workspace.keys, workspace.store)
        eligibility = workspace.config.policy.settings.eligibility
        mailbox = Mailbox(workspace.store, Spool(workspace.state.spool), eligibility=eligibility)
        quotas = Quotas(workspace.config.quotas.settings())
        rounds = RoundService(mailbox, quotas=quotas)
        with (
            opened_engine(workspace, mailbox, value_count(bundle.adapter_schema)) as engine,
            _start(workspace, authority, rounds, engine, quotas) as server,
            drained(server, rounds, terminal.note),
        ):
            host = workspace.config.server.listen.rpartition(":")[0]
            terminal.note(f"serving release {bundle.digest.hex()[:16]} on {host}:{server.port}")
            # (3) The rounds.
            started = time.time()
            campaign = _campaign(workspace, bundle, authority, mailbox, engine, terminal)
            try:
                result = run_campaign(campaign)
            except OffsiteError as error:
                # (4) The end, if it is one: whatever else stops a run, the next one goes on.
                if mailbox.status.phase is Phase.FAILED:
                    _write_report(workspace, _result_so_far(campaign.record), str(error))
                    _say_farewell(workspace, mailbox, started)
                raise
            # (4) The end.
            report = _write_report(workspace, result)
            terminal.result(result.reason, report)
            _say_farewell(workspace, mailbox, started)
            if stay:
                terminal.note("the campaign has ended; serving until interrupted")
                threading.Event().wait()


def _start(
    workspace: Workspace,
    authority: Authority,
    rounds: RoundService,
    engine: Engine,
    quotas: Quotas,
) -> RunningServer:
    keys = workspace.keys
    certificate = ServerCertificate(workspace.state, keys)
    receipts = Receipts(workspace.store, keys.coordinator, time.time)
    return start_server(
        workspace.config.server.listen,
        ServerTls(certificate.current, keys.client_roots_pem),
        Gatekeeper(authority, workspace.store, keys.bootstrap_ca_pem),
        (
            lambda server: add_EnrolmentServiceServicer_to_server(
                EnrolmentService(authority), server
            ),
            lambda server: add_ArtefactServiceServicer_to_server(
                ArtefactService(workspace.state.bundle), server
            ),
            lambda server: add_RoundServiceServicer_to_server(rounds, server),
            lambda server: add_LedgerServiceServicer_to_server(LedgerService(receipts), server),
            lambda server: add_FleetServiceServicer_to_server(FleetService(engine.tunnel), server),
        ),
        quotas,
    )


def _campaign(
    workspace: Workspace,
    bundle: Bundle,
    authority: Authority,
    mailbox: Mailbox,
    engine: Engine,
    terminal: Terminal,
) -> Campaign:
    keys, record = workspace.keys, record_of(workspace, bundle)
    config, model = workspace.config, load_model(workspace.config, bundle)
    corrector = corrector_for(config, bundle, model)
    campaign_id = record.open(time.time()).campaign_id
    return Campaign(
        record=record,
        keys=CoordinatorKeys(keys.coordinator, keys.authority.public),
        grid=engine.grid(campaign_id),
        members=lambda: members_of(authority),
        secure=SecureParts(
            directory=lambda: envelope.to_bytes(authority.signed_directory()),
            decisions=workspace.store.decisions,
            results=workspace.store.results,
            evidence=workspace.state.evidence,
            threads=os.cpu_count() or 1,
        ),
        gate=gate_of(config, bundle, model, terminal.progress, corrector),
        announce=lambda phase, reason: mailbox.set_status(CampaignStatus(phase, reason)),
        misfit=mailbox.misfit,
        silent_s=_silence(workspace.store, time.time()),
    )


def _silence(store: Store, since_unix_s: float) -> Callable[[int], float]:
    def silence(node: int) -> float:
        client = store.clients.by_node(node)
        seen = None if client is None else client.last_seen_unix_s
        return silent_s(seen, since_unix_s, time.time())

    return silence


def members_of(authority: Authority) -> Mapping[int, Member]:
    """Clients of the directory that are not revoked, by Flower node id."""
    return {
        node_id(entry.client_id): Member(entry.client_id, entry.identity_key)
        for entry in authority.directory().entries
        if entry.role is Role.CLIENT and entry.status is Status.ACTIVE
    }


def _result_so_far(record: CampaignRecord) -> CampaignResult:
    row = record.store.current()
    assert row is not None  # the campaign that has just failed
    return record.result(row)


def _write_report(
    workspace: Workspace, result: CampaignResult, failure: str | None = None
) -> dict[str, object]:
    """The result, or what there is of it, with the settings that led to it, beside the state."""
    report: dict[str, object] = {
        "campaign": result.campaign_id,
        "failure": failure,
        "released": result.released,
        "best_round": result.standing.best_round,
        "gate_full": result.standing.baseline,
        "gate_plug_in": result.standing.best_acc,
        "reason": result.reason,
        "settings": to_tables(workspace.config),
    }
    path = workspace.state.reports / f"campaign-{result.campaign_id}.json"
    write_atomic(path, json.dumps(report, indent=2).encode())
    return report


def _say_farewell(workspace: Workspace, mailbox: Mailbox, started_unix_s: float) -> None:
    """Waits until every edge that took part has heard the end, within `FAREWELL_S`."""
    until = time.monotonic() + FAREWELL_S
    pause = threading.Event()
    while time.monotonic() < until and _untold(workspace, mailbox, started_unix_s):
        pause.wait(0.1)


def _untold(workspace: Workspace, mailbox: Mailbox, since_unix_s: float) -> bool:
    seen = (
        client.client_id
        for client in workspace.store.clients.active()
        if (client.last_seen_unix_s or 0.0) >= since_unix_s
    )
    return any(client_id not in mailbox.told for client_id in seen)


@contextlib.contextmanager
def _logging(terminal: Terminal, path: Path) -> Iterator[None]:
    """Shows what is said inside, one line each, and writes it to `path`, with tracebacks."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            detail = f"; {path} says why" if record.exc_info else ""
            terminal.note(record.getMessage() + detail)

    with machine_errors(path):
        file = _OwnersFile(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    file.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("offsite")
    logger.setLevel(logging.INFO)
    logger.handlers = [Lines(), file]
    logger.propagate = False
    try:
        yield
    except Exception as error:
        file.handle(_last_words(logger, error))  # the terminal hears of it from our caller
        raise
    finally:
        logger.removeHandler(file)
        file.close()


def _last_words(logger: logging.Logger, error: Exception) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__)
    return logger.makeRecord(
        logger.name, logging.ERROR, __file__, 0, "the coordinator stopped", (), exc_info
    )


class _OwnersFile(RotatingFileHandler):
    """A log that only its owner reads, and that no peer can fill the disk with."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        os.fchmod(descriptor, FILE_MODE)  # one that was there already keeps its mode otherwise
        return open(descriptor, "a", encoding=self.encoding)


class _OneLine(logging.Formatter):
    """Messages may quote a peer, who starts no line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
