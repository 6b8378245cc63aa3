"""Settings of the coordinator: `coordinator.toml`, written with comments by `coordinator init`."""

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.methods.method import MethodName
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.secure.errors import ConfigError


class StrategyName(enum.Enum):
    """Aggregation strategies of Flower that are wired."""

    FEDAVG = "fedavg"
    FEDADAM = "fedadam"


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ConfigError(problem)


@dataclass(frozen=True, slots=True)
class ModelSection:
    """The owner's model; it never leaves this machine."""

    path: Annotated[Path, "folder of a Hugging Face decoder (config, safetensors, tokenizer)"] = (
        Path("model")
    )
    name: Annotated[str, "name shown to data owners"] = "model"
    dtype: Annotated[ComputeDtype, "weights in memory: bfloat16 or float32"] = ComputeDtype.BFLOAT16


@dataclass(frozen=True, slots=True)
class EmulatorSection:
    """How the emulator is built from the model."""

    method: Annotated[MethodName, "width_prune or uniform_drop"] = MethodName.WIDTH_PRUNE
    ratio: Annotated[float, "share of the middle's parameters kept, in (0, 1]"] = 0.62
    bottom: Annotated[int, "adapter slots at the bottom, in blocks"] = 2
    top: Annotated[int, "adapter slots at the top, in blocks"] = 2
    calibration: Annotated[
        Path | None, "public text for calibration (.txt or .jsonl, may be .gz)"
    ] = None
    calibration_tokens: Annotated[int, "tokens read from it"] = 16_384
    release_days: Annotated[int, "days until the release expires"] = 90

    def __post_init__(self) -> None:
        _require(0 < self.ratio <= 1, f"ratio: expected a share in (0, 1], found {self.ratio}")
        _require(self.bottom >= 0 and self.top >= 0, "bottom and top: expected 0 or more blocks")
        _require(self.bottom + self.top > 0, "bottom and top: at least one adapter slot is needed")
        _require(self.release_days > 0, "release_days: expected at least 1")


@dataclass(frozen=True, slots=True)
class AdapterSection:
    """What data owners tune."""

    kind: Annotated[AdapterKind, "whole_block or lora"] = AdapterKind.WHOLE_BLOCK
    rank: Annotated[int, "rank of LoRA"] = 16
    alpha: Annotated[int, "scale of LoRA (alpha / rank multiplies its output)"] = 32

    def __post_init__(self) -> None:
        _require(1 <= self.rank <= 1024, f"rank: expected 1 to 1024, found {self.rank}")


@dataclass(frozen=True, slots=True)
class CampaignSection:
    """The rounds."""

    name: Annotated[str, "name shown to data owners"] = "campaign"
    min_clients: Annotated[int, "clients that must be there before a round starts"] = 2
    min_replies: Annotated[int, "updates without which a round does not count"] = 2
    rounds: Annotated[int, "rounds at most"] = 3
    patience: Annotated[int, "stop after so many rounds without a better gate (0: never)"] = 0
    deadline_s: Annotated[float, "seconds that a round may take; later updates are left out"] = (
        3600.0
    )
    strategy: Annotated[StrategyName, "fedavg or fedadam"] = StrategyName.FEDAVG
    server_learning_rate: Annotated[float, "step of FedAdam on the server"] = 1e-3
    seed: Annotated[int, "seed of initial LoRA factors and of the order of examples"] = 0

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_replies <= self.min_clients, "min_replies: expected 1 to min_clients"
        )
        _require(self.rounds >= 1, f"rounds: expected at least 1, found {self.rounds}")
        _require(self.deadline_s > 0, "deadline_s: expected a positive number of seconds")
        _require(self.patience >= 0, "patience: expected 0 or more")


@dataclass(frozen=True, slots=True)
class GateSection:
    """The owner's own questions, with which every round is judged."""

    questions: Annotated[Path | None, "JSONL with query, choices, gold (may be .gz)"] = None
    limit: Annotated[int, "use only the first so many questions (0: all)"] = 0
    tolerance: Annotated[float, "acc that a plug-in may lose against the full model"] = 0.01
    batch_tokens: Annotated[int, "tokens evaluated at once"] = 4096


@dataclass(frozen=True, slots=True)
class ServerSection:
    """Where edges connect to."""

    listen: Annotated[str, "address to bind, HOST:PORT (port 0: any free one)"] = "127.0.0.1:7443"
    advertise: Annotated[str, "address in join tokens, HOST:PORT (empty: as listen)"] = ""


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """All settings of the coordinator."""

    model: ModelSection = field(default_factory=ModelSection)
    emulator: EmulatorSection = field(default_factory=EmulatorSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    campaign: CampaignSection = field(default_factory=CampaignSection)
    gate: GateSection = field(default_factory=GateSection)
    server: ServerSection = field(default_factory=ServerSection)
