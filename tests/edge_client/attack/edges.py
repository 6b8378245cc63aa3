"""An edge that attacks what it tuned, on folders of its own, with rows that only memory can predict."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from tests.edge_client.tuning.test_client_app import (
    COORDINATOR,
    IDENTITY,
    NOW,
    SETTINGS,
    Release,
    call,
    instruction,
    plan_for,
    secure_for,
)
from tests.tiny import write_jsonl

from offsite.edge_client.attack.attack_rounds import AttackRounds
from offsite.edge_client.attack.choice import AttackChoice
from offsite.edge_client.client_app import Listener, Machine, build_client_app
from offsite.edge_client.data import Data, read_data
from offsite.edge_client.privacy.ledger_folder import ENTRIES, LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.private_rounds import PrivateRounds
from offsite.emulator.rounds.plan import ComputeDtype, RoundPlan, TuningSettings
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord
from offsite.secure.privacy.ledger.verification import verify_ledger

ROWS = 160
HALF = AttackChoice(held_out_share=0.5, planted_secrets=4)
GENTLE = replace(
    SETTINGS,
    local_steps=4,
    batch_examples=16,
    learning_rate=1e-5,
    dtype=ComputeDtype.FLOAT32,
    validation_share=0.0,
    patience=0,
)
BY_HEART = replace(GENTLE, local_steps=120, batch_examples=42, learning_rate=1e-2)
LIMIT = PrivacyLimit(8.0, 1e-3)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def random_rows(folder: Path, count: int = ROWS) -> Data:
    """Completions of random letters, after prompts that say nothing."""
    chance = random.Random(3)
    rows = [
        {"prompt": f"Client {i} says", "completion": " " + "".join(chance.choices(LETTERS, k=8))}
        for i in range(count)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return read_data(write_jsonl(folder / "data.jsonl", rows))


@dataclass
class Edge:
    """An edge on its folders; every answer is that of a new process on the same ones."""

    release: Release
    folder: Path
    choice: AttackChoice | None = HALF
    limit: PrivacyLimit | None = None
    rows: int = ROWS
    said: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    """In place of the operating system's entropy."""

    def plan(self, settings: TuningSettings = GENTLE, **changes: object) -> RoundPlan:
        return plan_for(self.release, settings=settings, **changes)  # type: ignore[arg-type]

    def answer(self, plan: RoundPlan, between: Callable[[], None] = lambda: None) -> Message:
        return call(self.app(between), instruction(plan, self.release.adapter)[0])

    def app(self, between: Callable[[], None] = lambda: None) -> ClientApp:
        attack = None
        if self.choice is not None:
            attack = AttackRounds(
                self.folder / "attack",
                self.choice,
                COORDINATOR.public,
                self.said.append,
                self.chance.randbytes,
            )
        return build_client_app(
            self.release.bundle,
            random_rows(self.folder, self.rows),
            secure_for(self.folder),
            self.folder / "work",
            privacy=self._privacy(),
            attack=attack,
            listener=Listener(
                status=self.statuses.append, alone=self.said.append, between_steps=between
            ),
            machine=Machine(torch.device("cpu")),
        )

    def _privacy(self) -> PrivateRounds | None:
        if self.limit is None:
            return None
        ledger = LedgerFolder.open(
            self.folder / "ledger", IDENTITY, "clinic", "offsite", lambda: NOW
        )
        ledger.settle_limit(self.limit)
        return PrivateRounds(ledger, self.limit, COORDINATOR.public, self.said.append, lambda: None)

    @property
    def evidence(self) -> list[Path]:
        return sorted((self.folder / "attack").glob("evidence/*/*.json"))

    @property
    def draws(self) -> list[Path]:
        return sorted((self.folder / "attack").glob("draws/*.json"))

    @property
    def sums(self) -> list[Path]:
        """What is kept of sums that an update was given to."""
        return sorted((self.folder / "secure").glob("*"))

    @property
    def bodies(self) -> list[object]:
        """Of the ledger's entries, which are without a fault."""
        entries = (self.folder / "ledger" / ENTRIES).read_bytes()
        found = verify_ledger(entries, IDENTITY.public, accounting=AccountantsOfRecord())
        assert found.faults == ()
        return [record.entry.body for record in found.records]
