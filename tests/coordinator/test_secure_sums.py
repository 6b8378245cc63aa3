"""A cohort's sum over Flower's `Grid`: real edges' code, real coordinator's code, in process."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from tests.secure.aggregation.fleets import COORDINATOR, config, identity_of, name_of

from offsite.audit.round import audit_round
from offsite.coordinator.campaign_parts import Campaign, CoordinatorKeys, SecureParts
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.secure_sums.decisions import Decision
from offsite.coordinator.secure_sums.secure_sum import EVIDENCE, RESULT, Cohort, SecureSum
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.results import ResultTable
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.emulator.rounds.exchange import Action
from offsite.emulator.rounds.flower_internals import SERVER_NODE_ID, set_task_identity
from offsite.emulator.rounds.plan import RoundPlan, SignedPlan, TuningSettings
from offsite.emulator.rounds.vector import schema_digest
from offsite.emulator.schema import TensorSpec
from offsite.secure import envelope
from offsite.secure.aggregation.evidence import Evidence, verify_round
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import CONFIG_TYPE, RoundConfig
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.errors import PolicyError
from offsite.secure.identity import IdentityKey
from offsite.secure.names import node_id

AUTHORITY = IdentityKey.from_seed(hashlib.sha256(b"authority").digest())
VALUES = 12
SUM_ID = "1.1.0.0"
SCHEMA = {"top.0.w": TensorSpec("F32", (VALUES,))}
PLAN = SignedPlan(
    RoundPlan(1, 1, 1, 1, "ab" * 32, "cd" * 32, TuningSettings(), 1e9, 0), hashlib.sha256().digest()
)


class Kept:
    """Decisions in memory that outlive a coordinator of the test, as rows outlive a process."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Decision], bytes] = {}

    def find(self, sum_id: str, decision: Decision) -> bytes | None:
        return self.values.get((sum_id, decision))

    def keep(self, sum_id: str, decision: Decision, value: bytes) -> None:
        assert self.values.setdefault((sum_id, decision), value) == value

    def forget(self, attempt_id: str) -> None:
        raise AssertionError("a sum forgets nothing by itself")


class Killed(BaseException):
    """The coordinator's process ends here."""


class DyingGrid(LocalGrid):
    """A grid whose user is killed before or after the n-th push."""

    def __init__(self, apps: Mapping[int, ClientApp], dies_at: int | None = None) -> None:
        super().__init__(apps)
        self.pushes, self.dies_at = 0, dies_at

    def push_messages(self, messages: Any) -> Any:
        self.pushes += 1
        if self.pushes == self.dies_at:
            self.dies_at = None
            raise Killed
        found = super().push_messages(messages)
        if self.dies_at is not None and self.pushes + 1 == self.dies_at and self.pushes % 2:
            self.dies_at = None
            raise Killed
        return found


class Scene:
    """Clients that have tuned, and a coordinator that is about to ask for their sum."""

    def __init__(
        self, folder: Path, clients: int, gone: Mapping[int, Action] | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.names = folder, [name_of(i) for i in range(clients)]
        directory = Directory(1, tuple(_entry(name) for name in ("coordinator", *self.names)))
        self.directory = envelope.to_bytes(sign_directory(directory, AUTHORITY))
        self.terms = config(
            clients,
            VALUES,
            attempt=1,
            binding=PLAN.digest,
            schema_sha256=schema_digest(SCHEMA),
            directory_sha256=hashlib.sha256(self.directory).digest(),
            deadlines_unix_s=(2e9,) * 5,
        )
        self.updates = {
            name: np.random.default_rng(i).normal(0, 0.1, VALUES).astype(np.float32)
            for i, name in enumerate(self.names)
        }
        leaving = {name_of(i): action for i, action in (gone or {}).items()}
        self.apps = {
            node_id(name): self.app(name, directory, leaving.get(name)) for name in self.names
        }
        self.decisions = Kept()
        self.results = ResultTable(Database(folder / "results.sqlite"))

    def app(self, name: str, directory: Directory, gone_at: Action | None) -> ClientApp:
        trust = Trust(
            COORDINATOR.public,
            AUTHORITY.public,
            lambda: directory,
            lambda _: None,
            PolicyFloor(least_cohort=2),
        )
        app, order = ClientApp(), list(Action)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            rounds = self.rounds(name, trust)
            if rounds.check_terms(self.signed_terms, PLAN, SCHEMA):
                return Message(rounds.resume(self.signed_terms), reply_to=message)
            content = rounds.begin(self.signed_terms, PLAN, self.updates[name], 50)
            return Message(content, reply_to=message)

        for action in Action:

            def step(message: Message, context: Context, action: Action = action) -> Message:
                if gone_at is not None and order.index(action) >= order.index(gone_at):
                    raise RuntimeError("gone")
                # A new object each time: every step begins from what is on the disk.
                return self.rounds(name, trust).answer(action, message)

            app.train(action.value)(step)
        return app

    def rounds(self, name: str, trust: Trust) -> SecureRounds:
        root = self.folder / name
        entropy = hashlib.sha256(b"entropy" + name.encode()).digest()
        return SecureRounds(
            name, identity_of(name), trust, root, lambda: 0.0, entropy=lambda: entropy
        )

    @property
    def signed_terms(self) -> bytes:
        return envelope.to_bytes(envelope.sign(CONFIG_TYPE, self.terms.to_bytes(), COORDINATOR))

    def run(self, grid: LocalGrid) -> SecureSum:
        """A new coordinator process on what the old ones left."""
        set_task_identity(1, SERVER_NODE_ID)
        keys = CoordinatorKeys(COORDINATOR, AUTHORITY.public)
        campaign = cast(
            Campaign,
            SimpleNamespace(
                grid=grid,
                keys=keys,
                clock=lambda: 0.0,
                pause=lambda _: None,
                settings=SimpleNamespace(poll_s=0.0, sums=SumSettings()),
                secure=SecureParts(
                    lambda: self.directory,
                    self.decisions,
                    self.results,
                    self.folder / "evidence",
                ),
            ),
        )
        cohort = Cohort(
            SUM_ID,
            "1.0.0",
            self.signed_terms,
            self.directory,
            {name: identity_of(name).public for name in self.names},
        )
        made = SecureSum(campaign, cohort)
        made.add_advertisements(self.trained(grid))
        return made

    def trained(self, grid: LocalGrid) -> Any:
        ids = grid.find("1.0") or list(LocalGrid.push_messages(grid, self.instructions()))
        by_node = {node_id(name): name for name in self.names}
        for reply in grid.pull_messages(ids):
            yield by_node[reply.metadata.src_node_id], reply

    def instructions(self) -> list[Message]:
        return [
            Message(RecordDict(), dst_node_id=node, message_type="train", group_id="1.0")
            for node in self.apps
        ]

    def exact(self, names: tuple[str, ...]) -> Any:
        return sum(self.updates[name].astype(np.float64) for name in names) / len(names)


def _entry(name: str) -> DirectoryEntry:
    role = Role.CLIENT if name.startswith("edge") else Role.COORDINATOR
    key = identity_of(name).public if role is Role.CLIENT else COORDINATOR.public
    return DirectoryEntry(name, key, role, Status.ACTIVE, 0.0)


def test_a_cohorts_mean_comes_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4)
    found = scene.run(LocalGrid(scene.apps)).mean()
    assert found.survivors == tuple(scene.names)
    assert np.abs(found.mean.values - scene.exact(found.survivors)).max() < 1e-7
    assert found.mean.total_weight == pytest.approx(4 * 50 / 100)


@pytest.mark.parametrize("action", Action)
def test_clients_may_vanish_in_every_phase(tmp_path: Path, action: Action) -> None:
    scene = Scene(tmp_path, 7, {2: action, 5: action})
    found = scene.run(LocalGrid(scene.apps)).mean()
    early = action in (Action.SHARE, Action.ACKNOWLEDGE, Action.MASK)
    expected = [n for i, n in enumerate(scene.names) if not (early and i in (2, 5))]
    assert list(found.survivors) == expected
    assert np.abs(found.mean.values - scene.exact(found.survivors)).max() < 1e-7


def test_too_few_clients_give_no_mean(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4, {1: Action.MASK, 2: Action.MASK})
    with pytest.raises(PolicyError, match="at least 3 survivors"):
        scene.run(LocalGrid(scene.apps)).mean()


@pytest.mark.parametrize("push", [1, 2, 3, 4, 5])
def test_a_coordinator_that_is_killed_goes_on_with_the_same_sum(tmp_path: Path, push: int) -> None:
    undisturbed = Scene(tmp_path / "a", 4)
    expected = undisturbed.run(LocalGrid(undisturbed.apps)).mean()
    scene = Scene(tmp_path / "b", 4)
    grid = DyingGrid(scene.apps, dies_at=push)
    with pytest.raises(Killed):
        scene.run(grid).mean()
    found = scene.run(grid).mean()
    assert np.array_equal(found.mean.values, expected.mean.values)
    assert found.survivors == expected.survivors


def test_the_sum_can_be_audited_offline(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 5, {3: Action.MASK})
    made = scene.run(LocalGrid(scene.apps))
    found = made.mean()
    folder = tmp_path / "evidence" / SUM_ID
    evidence = Evidence.from_bytes((folder / EVIDENCE).read_bytes())
    verified = verify_round(
        evidence,
        (folder / RESULT).read_bytes(),
        COORDINATOR.public,
        lambda name: identity_of(name).public,
        lambda name: np.frombuffer((folder / f"{name}.masked").read_bytes(), "<u4"),
    )
    assert verified.survivors == found.survivors
    assert verified.dropped == (name_of(3),)


def test_no_file_of_the_coordinator_holds_an_update(tmp_path: Path) -> None:
    """Neither as floats nor encoded: what is stored of a member is masked."""
    scene = Scene(tmp_path, 4)
    made = scene.run(LocalGrid(scene.apps))
    made.mean()
    terms = RoundConfig.from_bytes(scene.terms.to_bytes())
    assert terms == made.config
    for path in (tmp_path / "evidence" / SUM_ID).iterdir():
        data = path.read_bytes()
        for name, update in scene.updates.items():
            words = (scene.folder / name).rglob("words")
            encoded = next(iter(words)).read_bytes()
            assert update[:4].tobytes() not in data
            assert encoded[:16] not in data


def test_a_sum_that_was_published_stays_as_it_is_when_late_reveals_come(tmp_path: Path) -> None:
    """Killed after it published; at the restart one more client has revealed."""
    scene = Scene(tmp_path, 5, {4: Action.REVEAL})
    first = scene.run(LocalGrid(scene.apps)).mean()
    folder = tmp_path / "evidence" / SUM_ID
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = Scene(tmp_path, 5)
    again.decisions = scene.decisions
    second = again.run(LocalGrid(again.apps)).mean()
    assert np.array_equal(second.mean.values, first.mean.values)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert scene.results.all() == [kept[RESULT]]
    assert audit_round(folder, AUTHORITY.public.short).verified.survivors == first.survivors
