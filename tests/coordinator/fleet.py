"""A campaign in memory: a few clients whose tuning is a formula, a gate that is one too.

The clients are real in everything but their tuning: they check plans and terms, and take part in
secure sums with folders of their own.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from torch import Tensor

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign_parts import (
    Campaign,
    CampaignSettings,
    CoordinatorKeys,
    Member,
    Release,
    SecureParts,
)
from offsite.coordinator.campaign_record import CampaignRecord
from offsite.coordinator.gate import GateScore
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.tables.campaigns import CampaignTable
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.decisions import DecisionTable
from offsite.coordinator.tables.results import ResultTable
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.emulator.rounds.exchange import Action
from offsite.emulator.rounds.instruction import read_instruction, read_terms
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.rounds.vector import to_vector
from offsite.emulator.schema import TensorSpec
from offsite.secure import envelope
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.identity import IdentityKey
from offsite.secure.names import node_id

NAMES = ("alice", "bob", "carol")
MANY = tuple(f"edge-{index}" for index in range(9))
COORDINATOR = IdentityKey.from_seed(b"c" * 32)
AUTHORITY = IdentityKey.from_seed(b"a" * 32)
SCHEMA = {"top.0.w": TensorSpec("F32", (4, 3)), "top.0.b": TensorSpec("F32", (3,))}
ADAPTER = {"top.0.w": torch.linspace(-1, 1, 12).reshape(4, 3), "top.0.b": torch.zeros(3)}
RELEASE = Release(b"r" * 32, SCHEMA, ADAPTER)
KEYS = {name: IdentityKey.from_seed(name.encode().ljust(32, b".")) for name in NAMES + MANY}
SUMS = SumSettings(full_weight=100)


def _entry(name: str, key: IdentityKey, role: Role) -> DirectoryEntry:
    return DirectoryEntry(name, key.public, role, Status.ACTIVE, 0.0)


ENTRIES = [_entry(name, KEYS[name], Role.CLIENT) for name in sorted(KEYS)]
ENTRIES.insert(0, _entry("aaa", COORDINATOR, Role.COORDINATOR))
DIRECTORY = Directory(1, tuple(ENTRIES))
SIGNED_DIRECTORY = envelope.to_bytes(sign_directory(DIRECTORY, AUTHORITY))

Answer = Callable[[Message], Message]
Reply = Callable[[str, Message, Answer], Message]
"""(client, instruction, what it answers honestly) -> what it answers."""
Delta = Callable[[str, Mapping[str, Tensor], int], dict[str, Tensor]]


def delta_of(name: str, adapter: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """What a client's tuning changes: depends on client, seed and where it starts."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    return {
        key: 1e-3 * torch.randn(value.shape, generator=generator) - 0.01 * value
        for key, value in adapter.items()
    }


def examples_of(name: str) -> int:
    """What a client says it has: 10, 20, 30."""
    return 10 * (1 + NAMES.index(name)) if name in NAMES else 10


@dataclass
class Fleet:
    """Three clients; `replies` says who answers differently, `deltas` who tunes differently."""

    replies: dict[str, Reply] = field(default_factory=dict)
    now: float = 1_000.0
    trained: list[tuple[str, int, int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    names: tuple[str, ...] = NAMES
    deltas: dict[str, Delta] = field(default_factory=dict)
    policy: PolicyFloor = field(default_factory=lambda: PolicyFloor(least_cohort=2))
    _folder: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)

    @property
    def folder(self) -> Path:
        """Where the clients keep their state."""
        return Path(self._folder.name)

    def apps(self) -> dict[int, ClientApp]:
        return {node_id(name): self._app(name) for name in self.names}

    def members(self) -> dict[int, Member]:
        return {node_id(name): Member(name, KEYS[name].public) for name in self.names}

    def rounds(self, name: str) -> SecureRounds:
        """As after a restart of the client: all that it knows is on the disk."""
        trust = Trust(
            COORDINATOR.public,
            AUTHORITY.public,
            lambda: DIRECTORY,
            lambda _: None,
            self.policy,
        )
        return SecureRounds(name, KEYS[name], trust, self.folder / name, lambda: self.now)

    def tune(self, name: str, message: Message) -> Message:
        """An honest client's reply to an instruction."""
        signed, adapter = read_instruction(message, COORDINATOR.public, SCHEMA, self.now)
        rounds, terms = self.rounds(name), read_terms(message)
        if rounds.check_terms(terms, signed, SCHEMA):
            return Message(rounds.resume(terms), reply_to=message)
        plan = signed.plan
        self.trained.append((name, plan.round, plan.attempt))
        self.seeds.append(plan.seed)
        delta = self.deltas.get(name, delta_of)(name, adapter, plan.seed)
        update = to_vector(delta, SCHEMA)
        return Message(rounds.begin(terms, signed, update, examples_of(name)), reply_to=message)

    def _app(self, name: str) -> ClientApp:
        app = ClientApp()

        def answering(answer: Answer) -> Callable[[Message, Context], Message]:
            def reply(message: Message, context: Context) -> Message:
                special = self.replies.get(name)
                return answer(message) if special is None else special(name, message, answer)

            return reply

        def step(action: Action) -> Answer:
            return lambda message: self.rounds(name).answer(action, message)

        app.train()(answering(lambda message: self.tune(name, message)))
        for action in Action:
            app.train(action.value)(answering(step(action)))
        return app

    def pause(self, seconds: float) -> None:
        self.now += max(seconds, 1e-3)


@dataclass
class FormulaGate:
    """Accuracy by a formula of the adapter; counts its baselines."""

    formula: Callable[[Mapping[str, Tensor]], float] = lambda adapter: 0.6
    base: float = 0.5
    baselines: int = 0

    def baseline(self) -> GateScore:
        self.baselines += 1
        return GateScore(self.base, 0.01)

    def score(self, adapter: Mapping[str, Tensor]) -> GateScore:
        return GateScore(self.formula(adapter), 0.01)


@dataclass
class Announcements:
    phases: list[tuple[Phase, str]] = field(default_factory=list)

    def __call__(self, phase: Phase, reason: str) -> None:
        self.phases.append((phase, reason))


def settings(**changes: object) -> CampaignSettings:
    values: dict[str, object] = {
        "tuning": TuningSettings(),
        "min_clients": 3,
        "deadline_s": 60.0,
        "sums": SUMS,
    }
    return CampaignSettings(**(values | changes))  # type: ignore[arg-type]


def open_store(folder: Path) -> CampaignTable:
    return CampaignTable(_database(folder))


def _database(folder: Path) -> Database:
    folder.mkdir(parents=True, exist_ok=True)
    return Database(folder / "coordinator.sqlite")


def campaign(folder: Path, fleet: Fleet, grid: Grid | None = None, **changes: object) -> Campaign:
    """A campaign in `folder`; keyword arguments are settings, or `gate`, `store`, `pause`."""
    gate = changes.pop("gate", FormulaGate())
    pause = changes.pop("pause", fleet.pause)
    store = changes.pop("store", None) or open_store(folder)
    decisions = changes.pop("decisions", None) or DecisionTable(_database(folder))
    results = changes.pop("results", None) or ResultTable(_database(folder))
    return Campaign(
        record=CampaignRecord(settings(**changes), RELEASE, store, AdapterFiles(folder)),
        keys=CoordinatorKeys(COORDINATOR, AUTHORITY.public),
        grid=grid or LocalGrid(fleet.apps()),
        members=fleet.members,
        secure=SecureParts(lambda: SIGNED_DIRECTORY, decisions, results, folder / "evidence"),
        gate=gate,
        announce=Announcements(),
        clock=lambda: fleet.now,
        pause=pause,
    )
