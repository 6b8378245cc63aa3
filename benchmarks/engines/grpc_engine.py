"""Our engine: a coordinator and two edges, all of it real but the tuning."""

import hashlib
import time
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from benchmarks.coordinator_memory import scene
from benchmarks.coordinator_memory.memory import resident_mb
from benchmarks.transport.saying import say
from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import (
    Campaign,
    CampaignSettings,
    CoordinatorKeys,
    Member,
    Release,
    SecureParts,
)
from offsite.coordinator.campaign_record import CampaignRecord
from offsite.coordinator.grid import GrpcGrid
from offsite.coordinator.mailbox import CampaignStatus
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.edge_client.worker import Edge, run_worker
from offsite.emulator.rounds.exchange import Action, most_reply_bytes
from offsite.emulator.rounds.instruction import read_instruction, read_terms
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.rounds.vector import to_vector, value_count
from offsite.emulator.schema import TensorSpec
from offsite.secure import envelope
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.identity import IdentityKey
from offsite.secure.names import node_id

CLIENTS = 2
CAMPAIGN_ID = 1
ROW = 1 << 20
COORDINATOR = IdentityKey.from_seed(b"c" * 32)
AUTHORITY = IdentityKey.from_seed(b"a" * 32)
NAMES = tuple(scene.client_name(index) for index in range(CLIENTS))
KEYS = {name: IdentityKey.from_seed(hashlib.sha256(name.encode()).digest()) for name in NAMES}
DIRECTORY = Directory(
    1,
    (
        DirectoryEntry("coordinator", COORDINATOR.public, Role.COORDINATOR, Status.ACTIVE, 0.0),
        *(DirectoryEntry(n, KEYS[n].public, Role.CLIENT, Status.ACTIVE, 0.0) for n in NAMES),
    ),
)


def schema(megabytes: int) -> dict[str, TensorSpec]:
    """An adapter of so many MB: one tensor for each."""
    return {f"top.0.w{i:04}": TensorSpec("F32", (ROW // 4,)) for i in range(megabytes)}


def coordinator(work: Path, megabytes: int, rounds: int) -> None:
    """Serves and runs the campaign; says the port first and the figures last."""
    shape = schema(megabytes)
    values, store = value_count(shape), scene.open_store(work, CLIENTS)
    running, mailbox = scene.serve(work, store)
    settings = CampaignSettings(TuningSettings(), rounds=rounds, sums=SumSettings(full_weight=100))
    files = AdapterFiles(work / "release")
    first = files.write("first", {name: torch.zeros(spec.shape) for name, spec in shape.items()})
    release = Release(b"r" * 32, shape, files.lying(first, shape))
    grid = GrpcGrid(
        mailbox,
        store,
        CAMPAIGN_ID,
        most_reply_bytes=lambda message: most_reply_bytes(message.metadata.message_type, values),
    )
    campaign = Campaign(
        record=CampaignRecord(settings, release, store.campaigns, AdapterFiles(work / "adapters")),
        keys=CoordinatorKeys(COORDINATOR, AUTHORITY.public),
        grid=grid,
        members=lambda: {node_id(name): Member(name, KEYS[name].public) for name in NAMES},
        secure=SecureParts(
            lambda: envelope.to_bytes(sign_directory(DIRECTORY, AUTHORITY)),
            store.decisions,
            store.results,
            work / "evidence",
        ),
        gate=None,
        announce=lambda phase, reason: mailbox.set_status(CampaignStatus(phase, reason)),
    )
    with running:
        say(port=running.port, idle_mb=resident_mb())
        while len(list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.05)
        started = time.monotonic()
        run_campaign(campaign)
        seconds = (time.monotonic() - started) / rounds
        say(seconds_per_round=round(seconds, 3), peak_mb=resident_mb("VmHWM"))
        while not set(NAMES) <= mailbox.told:
            time.sleep(0.05)


def edge(work: Path, port: int, megabytes: int, name: str) -> None:
    """The real worker; what it tunes is a formula."""
    app, shape = ClientApp(), schema(megabytes)
    trust = Trust(
        COORDINATOR.public, AUTHORITY.public, lambda: DIRECTORY, lambda _: None, PolicyFloor(2)
    )
    sums = SecureRounds(name, KEYS[name], trust, work / name, time.time)

    def tune(message: Message, context: Context) -> Message:
        signed, adapter = read_instruction(message, COORDINATOR.public, shape, time.time())
        terms = read_terms(message)
        sums.check_terms(terms, signed, shape)
        update = to_vector(_delta(adapter), shape)
        return Message(sums.begin(terms, signed, update, 10.0), reply_to=message)

    app.train()(tune)
    for action in Action:
        app.train(action.value)(_step(sums, action))
    with scene.connected(work, port, name) as channel:
        run_worker(Edge(channel, name, work / f"{name}-rounds", Pulse(channel)), app)


def _delta(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(value, 1e-3) for name, value in adapter.items()}


def _step(sums: SecureRounds, action: Action):  # type: ignore[no-untyped-def]
    return lambda message, context: sums.answer(action, message)
