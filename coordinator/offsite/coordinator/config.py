"""Settings of the coordinator: `coordinator.toml`, written with comments by `coordinator init`."""

import enum
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from offsite.coordinator.addresses import is_address
from offsite.coordinator.config_leases import LeaseSection
from offsite.coordinator.config_policy import PolicySection, check_policy
from offsite.coordinator.config_problems import Problems
from offsite.coordinator.config_quotas import QuotaSection
from offsite.coordinator.config_release import (
    AdapterSection,
    EmulatorSection,
    LeakSection,
    SearchSection,
)
from offsite.coordinator.config_strategy import StrategySection
from offsite.coordinator.secure_sums.settings import FULL_WEIGHT, PHASE_S
from offsite.coordinator.strategies.fit import check_fit
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.secure import limits
from offsite.secure.aggregation.keystream import Generator
from offsite.secure.aggregation.round_config import LEAST_MEMBERS, MOST_MEMBERS
from offsite.secure.errors import ConfigError

MAX_DEADLINE_S = 365 * 24 * 3600
MAX_ROUNDS = 10**6
MAX_PHASE_S = 24 * 3600
MAX_FULL_WEIGHT = 10**9
MAX_CLIP_NORM = 1e9
MAX_COORDINATE_BOUND = 1e4
"""Sums and squares of such changes stay finite in fp32."""
MAX_SEED = 2**63 - 1
"""What plans, manifests and adapter specs can hold."""


class EngineName(enum.Enum):
    """What carries the messages of the rounds."""

    GRPC = "grpc"
    FLOWER = "flower"


class Keystream(enum.Enum):
    """What masks are made of."""

    CHACHA20 = "chacha20"
    AES256_CTR = "aes256_ctr"

    @property
    def generator(self) -> Generator:
        """As the terms of a sum name it."""
        return Generator[self.name]


@dataclass(frozen=True, slots=True)
class ModelSection:
    """The owner's model; it never leaves this machine."""

    path: Annotated[Path, "folder of a Hugging Face decoder (config, safetensors, tokenizer)"] = (
        Path("model")
    )
    name: Annotated[str, "name shown to data owners"] = "model"
    dtype: Annotated[ComputeDtype, "weights in memory: bfloat16 or float32"] = ComputeDtype.BFLOAT16

    def __post_init__(self) -> None:
        problems = Problems()
        problems.no_name("name", self.name)
        problems.report()


@dataclass(frozen=True, slots=True)
class CampaignSection:
    """The rounds."""

    name: Annotated[str, "name shown to data owners"] = "campaign"
    min_clients: Annotated[int, "clients that must be there before a round starts"] = 5
    min_replies: Annotated[
        int, "updates without which a sum is not opened; edges demand 5 unless told otherwise"
    ] = 5
    cohorts: Annotated[int, "sums per round; a strategy sees each sum's mean as one reply"] = 1
    rounds: Annotated[int, "rounds at most"] = 3
    patience: Annotated[int, "stop after so many rounds without a better gate (0: never)"] = 0
    deadline_s: Annotated[float, "seconds that tuning may take; who is later is left out"] = 3600.0
    phase_s: Annotated[float, "seconds for each of the five exchanges of a sum"] = PHASE_S
    full_weight: Annotated[int, "examples that weigh most; more weigh no more"] = FULL_WEIGHT
    clip_norm: Annotated[float, "largest norm of an update, scaled down by the edge (0: any)"] = 0.0
    coordinate_bound: Annotated[float, "largest change of one value, clipped by the edge"] = 1.0
    keystream: Annotated[Keystream, "of the masks: chacha20 or aes256_ctr"] = Keystream.CHACHA20
    seed: Annotated[int, "seed of initial LoRA factors and of the order of examples"] = 0

    MOVED_KEYS = MappingProxyType(
        {
            "strategy": "strategy.name",
            "server_learning_rate": "strategy.server_learning_rate",
        }
    )

    def __post_init__(self) -> None:
        problems = Problems()
        problems.no_name("name", self.name)
        problems.outside("min_clients", self.min_clients, LEAST_MEMBERS, limits.CLIENTS)
        problems.unless(
            LEAST_MEMBERS <= self.min_replies <= min(self.min_clients, MOST_MEMBERS),
            f"min_replies: expected {LEAST_MEMBERS} to min_clients, at most {MOST_MEMBERS}, found "
            f"{self.min_replies}: a sum of one is that one's update",
        )
        problems.unless(
            self.cohorts == 1 or 1 < self.cohorts <= self.min_clients // self.min_replies,
            f"cohorts: expected 1 to min_clients / min_replies, found {self.cohorts}",
        )
        problems.outside("rounds", self.rounds, 1, MAX_ROUNDS)
        problems.outside("patience", self.patience, 0, MAX_ROUNDS)
        problems.unless(
            0 < self.deadline_s <= MAX_DEADLINE_S,
            f"deadline_s: expected more than 0, up to {MAX_DEADLINE_S}, found {self.deadline_s}",
        )
        problems.unless(
            0 < self.phase_s <= MAX_PHASE_S,
            f"phase_s: expected more than 0, up to {MAX_PHASE_S}, found {self.phase_s}",
        )
        problems.outside("full_weight", self.full_weight, 1, MAX_FULL_WEIGHT)
        problems.outside("clip_norm", self.clip_norm, 0, MAX_CLIP_NORM)
        problems.unless(
            0 < self.coordinate_bound <= MAX_COORDINATE_BOUND,
            f"coordinate_bound: expected more than 0, up to {MAX_COORDINATE_BOUND:g}, found "
            f"{self.coordinate_bound}",
        )
        problems.outside("seed", self.seed, 0, MAX_SEED)
        problems.report()


@dataclass(frozen=True, slots=True)
class GateSection:
    """The owner's own questions, with which every round is judged."""

    questions: Annotated[Path | None, "JSONL with query, choices, gold (may be .gz)"] = None
    limit: Annotated[int, "use only the first so many questions (0: all)"] = 0
    tolerance: Annotated[float, "acc that a plug-in may lose against the full model"] = 0.01
    batch_tokens: Annotated[int, "tokens evaluated at once"] = 4096

    def __post_init__(self) -> None:
        problems = Problems()
        problems.unless(self.limit >= 0, f"limit: expected 0 or more, found {self.limit}")
        problems.outside("tolerance", self.tolerance, 0, 1)
        problems.unless(
            self.batch_tokens >= 1, f"batch_tokens: expected at least 1, found {self.batch_tokens}"
        )
        problems.report()


@dataclass(frozen=True, slots=True)
class ServerSection:
    """Where edges connect to."""

    listen: Annotated[str, "address to bind, HOST:PORT (port 0: any free one)"] = "127.0.0.1:7443"
    advertise: Annotated[str, "address in join tokens, HOST:PORT (empty: as listen)"] = ""
    engine: Annotated[EngineName, "of the rounds: grpc, or flower (stock Flower, same port)"] = (
        EngineName.GRPC
    )

    def __post_init__(self) -> None:
        problems = Problems()
        for name, value in (("listen", self.listen), ("advertise", self.advertise)):
            if value or name == "listen":
                found = f"{name}: expected HOST:PORT, found {value[:80]!a}"
                problems.unless(is_address(value), found)
        problems.report()


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """All settings of the coordinator."""

    model: ModelSection = field(default_factory=ModelSection)
    emulator: EmulatorSection = field(default_factory=EmulatorSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    leak: LeakSection = field(default_factory=LeakSection)
    search: SearchSection = field(default_factory=SearchSection)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    campaign: CampaignSection = field(default_factory=CampaignSection)
    strategy: StrategySection = field(default_factory=StrategySection)
    policy: PolicySection = field(default_factory=PolicySection)
    gate: GateSection = field(default_factory=GateSection)
    server: ServerSection = field(default_factory=ServerSection)
    quotas: QuotaSection = field(default_factory=QuotaSection)
    leases: LeaseSection = field(default_factory=LeaseSection)

    def __post_init__(self) -> None:
        check_policy(self.policy, self.campaign)
        check_fit(self.strategy, self.campaign)
        if self.emulator.middle_lora and self.adapter.kind is not AdapterKind.LORA:
            raise ConfigError(
                "emulator.middle_lora: the compressed blocks can only be tuned by a LoRA; set "
                "adapter.kind to lora"
            )
