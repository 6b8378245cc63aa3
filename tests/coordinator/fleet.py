"""A campaign in memory: a few clients whose tuning is a formula, a gate that is one too."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
)
from offsite.coordinator.campaign_record import CampaignRecord
from offsite.coordinator.gate import GateScore
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.tables.campaigns import CampaignTable
from offsite.coordinator.tables.database import Database
from offsite.emulator.rounds.instruction import read_instruction, reply_content
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.rounds.update import seal_update
from offsite.emulator.schema import TensorSpec
from offsite.secure.identity import IdentityKey
from offsite.secure.names import node_id
from offsite.secure.sealing import SealingKey

NAMES = ("alice", "bob", "carol")
COORDINATOR = IdentityKey.from_seed(b"c" * 32)
SEALING = SealingKey.from_seed(b"s" * 32)
SCHEMA = {"top.0.w": TensorSpec("F32", (4, 3)), "top.0.b": TensorSpec("F32", (3,))}
ADAPTER = {"top.0.w": torch.linspace(-1, 1, 12).reshape(4, 3), "top.0.b": torch.zeros(3)}
RELEASE = Release(b"r" * 32, SCHEMA, ADAPTER)
KEYS = {name: IdentityKey.from_seed(name.encode().ljust(32, b".")) for name in NAMES}

Reply = Callable[[str, Message, dict[str, Tensor], bytes, int], Message]


def delta_of(name: str, adapter: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """What a client's tuning changes: depends on client, seed and where it starts."""
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    return {
        key: 1e-3 * torch.randn(value.shape, generator=generator) - 0.01 * value
        for key, value in adapter.items()
    }


def honest(
    name: str, message: Message, adapter: dict[str, Tensor], digest: bytes, seed: int
) -> Message:
    sealed = seal_update(
        delta_of(name, adapter, seed),
        num_examples=10 * (1 + NAMES.index(name)),
        metrics={"loss": 1.0},
        plan_digest=digest,
        client_id=name,
        identity=KEYS[name],
        sealing_public=SEALING.public_bytes,
    )
    return Message(reply_content(sealed, 1), reply_to=message)


@dataclass
class Fleet:
    """Three clients; `replies` says who answers differently."""

    replies: dict[str, Reply] = field(default_factory=dict)
    now: float = 1_000.0
    trained: list[tuple[str, int, int]] = field(default_factory=list)
    names: tuple[str, ...] = NAMES

    def apps(self) -> dict[int, ClientApp]:
        return {node_id(name): self._app(name) for name in self.names}

    def members(self) -> dict[int, Member]:
        return {node_id(name): Member(name, KEYS[name].public) for name in self.names}

    def _app(self, name: str) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            signed, adapter = read_instruction(message, COORDINATOR.public, SCHEMA, self.now)
            self.trained.append((name, signed.plan.round, signed.plan.attempt))
            reply = self.replies.get(name, honest)
            return reply(name, message, adapter, signed.digest, signed.plan.seed)

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
    values: dict[str, object] = {"tuning": TuningSettings(), "min_clients": 3, "deadline_s": 60.0}
    return CampaignSettings(**(values | changes))  # type: ignore[arg-type]


def open_store(folder: Path) -> CampaignTable:
    folder.mkdir(parents=True, exist_ok=True)
    return CampaignTable(Database(folder / "coordinator.sqlite"))


def campaign(folder: Path, fleet: Fleet, grid: Grid | None = None, **changes: object) -> Campaign:
    """A campaign in `folder`; keyword arguments are settings, or `gate`, `store`, `pause`."""
    gate = changes.pop("gate", FormulaGate())
    pause = changes.pop("pause", fleet.pause)
    store = changes.pop("store", None) or open_store(folder)
    return Campaign(
        record=CampaignRecord(settings(**changes), RELEASE, store, AdapterFiles(folder)),
        keys=CoordinatorKeys(COORDINATOR, SEALING),
        grid=grid or LocalGrid(fleet.apps()),
        members=fleet.members,
        gate=gate,
        announce=Announcements(),
        clock=lambda: fleet.now,
        pause=pause,
    )
