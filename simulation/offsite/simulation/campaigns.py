"""One simulated campaign: the real loop, strategy and clients, on a clock that jumps.

`run_campaign` of the coordinator runs as it does for real edges, against a database of its own in
the folder of the run; the clients are the edges' own `ClientApp`s (`edge_client.client_app`), with
keys, data and folders of their own and one emulator for all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from flwr.app import Message
from flwr.clientapp import ClientApp

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import (
    Campaign,
    CampaignSettings,
    CoordinatorKeys,
    Release,
    SecureParts,
)
from offsite.coordinator.campaign_record import CampaignRecord
from offsite.coordinator.round_metrics import ROLLED_BACK
from offsite.coordinator.secure_sums.secure_sum import Cohort
from offsite.coordinator.store import Store
from offsite.edge_client.client_app import Machine, build_client_app
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.edge_client.tuning import Tune
from offsite.edge_client.workbench import Warm, Workbench
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.progress import silent
from offsite.emulator.rounds.instruction import read_instruction
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.training.batches import steps_of
from offsite.emulator.training.tokens import Example
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import LEAST_MEMBERS
from offsite.secure.errors import TransportError
from offsite.simulation.clients import Client, Fleet
from offsite.simulation.figures import RunFigures, figures_of
from offsite.simulation.frozen_changes import FrozenChanges
from offsite.simulation.judging import Baseline, SimulatedGate
from offsite.simulation.lora_ways import LoraWay
from offsite.simulation.private_clients import PrivateClients
from offsite.simulation.request import Request, SumKind
from offsite.simulation.simulated_time import Line, SimulatedClock, SimulatedGrid
from offsite.simulation.stacks import Stacks
from offsite.simulation.visible import Board, VisibleRounds, VisibleSum
from offsite.simulation.weather import EXCHANGE_S, Moment

POLL_S = 60.0
"""What a wait without any event under way takes at a time, such as one for a schedule."""
DEADLINE_SHARE = 1 / 3
"""Of the deadline that the median client needs where no time of a step is given."""
DATABASE = "simulation.sqlite"


@dataclass(frozen=True, slots=True)
class Scene:
    """What all campaigns of a simulation have in common."""

    request: Request
    bundle: Bundle
    fleet: Fleet
    warm: Warm
    baseline: Baseline
    tell: Callable[[str], None]
    way: LoraAggregation = LoraAggregation.AVERAGE

    def step_s(self, settings: CampaignSettings) -> float:
        """Simulated seconds of an optimiser step at a client of factor 1."""
        if self.request.step_s:
            return self.request.step_s
        steps = median(steps_at(client, settings.tuning) for client in self.fleet.clients)
        return DEADLINE_SHARE * settings.deadline_s / steps


def steps_at(client: Client, settings: TuningSettings) -> int:
    """About how many steps a client takes in a round, one example for each row."""
    rows = len(client.data.rows)
    train = max(rows - round(settings.validation_share * rows), 1)
    return settings.local_steps or steps_of(train, settings.batch_examples, settings.local_epochs)


def simulate_campaign(scene: Scene, settings: CampaignSettings, folder: Path) -> RunFigures:
    """Runs one campaign in `folder`, which is new."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    with Store(folder / DATABASE) as store:
        run = _Run(scene, settings, folder, store)
        failure = ""
        try:
            result = run_campaign(run.campaign())
        except TransportError as error:
            failure, result = str(error), None
        rounds = store.campaigns.rounds(1)
        return figures_of(
            settings, rounds, run.gate.noted, result, failure, time.monotonic() - started
        )


class _Run:
    """What belongs to one campaign alone."""

    def __init__(
        self, scene: Scene, settings: CampaignSettings, folder: Path, store: Store
    ) -> None:
        self.scene, self.settings, self.folder, self.store = scene, settings, folder, store
        self.clock = SimulatedClock(float(scene.bundle.manifest.facts.created_unix_s))
        self.private = self._private()
        self.way = self._way()
        spent = (lambda: None) if self.private is None else self.private.spent
        self.gate = SimulatedGate(scene.baseline, spent, self.way)
        self.board = Board() if self.way is None else Board(self.way.combine)
        size = scene.request.stack
        if self.private is not None and size != 1:
            scene.tell("clients are tuned one by one: private steps need every row's own gradient")
            size = 1
        self.stacks = Stacks(size, scene.warm, self._examples, scene.tell)
        self.by_name = {client.client_id: client for client in scene.fleet.clients}
        self.by_node = {client.node: client for client in scene.fleet.clients}
        self.directory = scene.fleet.directory()
        self.signed_directory = scene.fleet.signed_directory()

    def campaign(self) -> Campaign:
        """The campaign as the coordinator's loop takes it."""
        line = Line(self.clock, self._journey, self._prepare)
        grid = SimulatedGrid(self._apps(), line)
        bundle, fleet = self.scene.bundle, self.scene.fleet
        release = Release(bundle.digest, bundle.adapter_schema, bundle.load_adapter())
        return Campaign(
            record=CampaignRecord(
                self.settings, release, self.store.campaigns, AdapterFiles(self.folder)
            ),
            keys=CoordinatorKeys(fleet.coordinator, fleet.authority.public),
            grid=grid,
            members=fleet.members,
            secure=SecureParts(
                directory=lambda: self.signed_directory,
                decisions=self.store.decisions,
                results=self.store.results,
                evidence=self.folder / "evidence",
                summing=self._visible_sum if self._is_visible else None,
            ),
            gate=self.gate,
            clock=self.clock,
            pause=line.pause,
        )

    @property
    def _is_visible(self) -> bool:
        return self.scene.request.sums is SumKind.VISIBLE

    def _private(self) -> PrivateClients | None:
        request = self.scene.request
        if request.epsilon is None:
            return None
        limit = PrivacyLimit(request.epsilon, request.delta)
        coordinator = self.scene.fleet.coordinator.public
        return PrivateClients(limit, coordinator, self.clock.of_client)

    def _way(self) -> LoraWay | None:
        scene, adapter = self.scene, self.scene.warm.adapter
        ranks = scene.request.ranks
        if scene.way is LoraAggregation.AVERAGE and not ranks:
            return None
        assert isinstance(adapter, LoraAdapter)  # `check_way`
        given = ranks or (adapter.spec.rank,)
        return LoraWay(
            scene.way,
            adapter,
            scene.bundle.adapter_schema,
            scene.bundle.load_adapter(),
            {c.client_id: given[c.place % len(given)] for c in scene.fleet.clients},
            FrozenChanges(adapter),
            self._rolled_back,
        )

    def _rolled_back(self) -> Sequence[int]:
        rounds = self.store.campaigns.rounds(1)
        return [row.round for row in rounds if ROLLED_BACK in row.metrics]

    # Clients.

    def _apps(self) -> dict[int, ClientApp]:
        return {client.node: self._app(client) for client in self.scene.fleet.clients}

    def _app(self, client: Client) -> ClientApp:
        scene = self.scene
        return build_client_app(
            scene.bundle,
            client.data,
            self._rounds_of(client),
            client.folder(self.folder) / "work",
            privacy=None if self.private is None else self.private.rounds_of(client, self.folder),
            machine=Machine(scene.warm.device, warm=scene.warm, tune=self._tune_of(client)),
        )

    def _tune_of(self, client: Client) -> Tune:
        tune = self.stacks.tune_of(client.client_id)
        return tune if self.way is None else self.way.tune_of(client.client_id, tune)

    def _rounds_of(self, client: Client) -> SecureRounds:
        fleet = self.scene.fleet
        trust = Trust(
            fleet.coordinator.public,
            fleet.authority.public,
            directory=lambda: self.directory,
            keep_directory=lambda newer: None,
            policy=PolicyFloor(least_cohort=LEAST_MEMBERS),
        )
        root, clock = client.folder(self.folder) / "secure", self.clock.of_client
        if self._is_visible:
            return VisibleRounds(client.client_id, client.key, trust, root, clock, board=self.board)
        return SecureRounds(client.client_id, client.key, trust, root, clock)

    def _examples(self, name: str, max_tokens: int) -> Sequence[Example]:
        """Encoded once more for a stack; the app of the client keeps its own."""
        warm, data = self.scene.warm, self.by_name[name].data
        bench = Workbench(warm.bundle, data, warm.device, warm.status, silent, warm)
        return bench.examples(max_tokens).examples

    def _visible_sum(self, campaign: Campaign, cohort: Cohort) -> VisibleSum:
        return VisibleSum(campaign, cohort, self.board, self.scene.request.weather)

    # What happens to messages.

    def _journey(self, message: Message) -> float | None:
        """When a client answers; None if it has left, or leaves before."""
        weather, name = (
            self.scene.request.weather,
            self.by_node[message.metadata.dst_node_id].client_id,
        )
        round_number, attempt = map(int, message.metadata.group_id.split(".")[:2])
        moment = _moment(message)
        if not weather.answers(name, round_number, attempt, moment):
            return None
        seconds = EXCHANGE_S
        if moment is Moment.TUNE:
            steps = steps_at(self.by_name[name], self.settings.tuning)
            seconds = steps * self.scene.step_s(self.settings)
        return seconds * weather.factor(name)

    def _prepare(self, instructions: Sequence[Message]) -> None:
        """Before clients tune: what the round starts from, and those of them that tune together."""
        if not instructions or _moment(instructions[0]) is not Moment.TUNE:
            return
        schema, key = self.scene.bundle.adapter_schema, self.scene.fleet.coordinator.public
        signed, base = read_instruction(instructions[0], key, schema, self.clock.now)
        self.gate.round = signed.plan.round
        if self.way is not None:
            emulator = self.scene.warm.model(signed.plan.settings.dtype)
            self.way.begin(signed.plan, base, emulator)
        names = [self.by_node[m.metadata.dst_node_id].client_id for m in instructions]
        self.stacks.prepare(signed.plan, base, names)


def _moment(message: Message) -> Moment:
    """Which of a round's questions an instruction asks."""
    action = message.metadata.message_type.rpartition(".")[2]
    return Moment[action.upper()] if action != "train" else Moment.TUNE
