"""A tiny release as a LoRA, and a scene with clients of a divided data set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tests.tiny import save_llama, write_jsonl
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from offsite.coordinator.campaign_parts import CampaignSettings
from offsite.coordinator.gate import GateScore
from offsite.coordinator.policy.sampling import Sample
from offsite.coordinator.policy.settings import PolicySettings
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.edge_client.data import Data, read_data
from offsite.edge_client.workbench import Warm
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, TrainedFactors, make_adapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.secure.identity import IdentityKey
from offsite.simulation.campaigns import Scene
from offsite.simulation.clients import Fleet
from offsite.simulation.partition import Parts, iid
from offsite.simulation.request import Division, Request

NOW = 1_800_000_000
COORDINATOR = IdentityKey.from_seed(bytes(range(32)))
TUNING = TuningSettings(
    learning_rate=1e-2, local_steps=2, batch_examples=4, dtype=ComputeDtype.FLOAT32
)
WORDS = ("sun", "water", "plant", "magnet", "sound")


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here kills the power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows of five labels, of many lengths."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    return write_jsonl(
        path,
        (
            {
                "prompt": f"Question {i}: what is a {WORDS[i % 5]}?" + " Think." * (i % 7),
                "completion": f" A {WORDS[(i + 1) % 5]}" + " and more" * (i % 3),
                "label": i % 5,
            }
            for i in range(60)
        ),
    )


def make_bundle(
    folder: Path, trains: TrainedFactors, kind: AdapterKind = AdapterKind.LORA
) -> Bundle:
    """A random Llama that is its own emulator, with one slot at either end."""
    save_llama(folder / "model", hidden=32, blocks=4)
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    layer_map = LayerMap.of(Placement(1, 1), 4, (1, 2))
    spec = AdapterSpec(kind, rank=4, alpha=8, trains=trains)
    adapter = make_adapter(spec, layer_map)
    adapter.attach(model)
    tensors = adapter.extract(model)
    adapter.detach(model)
    contents = Contents(model, model.config, layer_map, spec, tensors, tokenizer)
    facts = ReleaseFacts("sky", 1, NOW, NOW + 10**7, "tiny", "ab" * 32, "uniform_drop", 1.0, {})
    write_bundle(folder / "bundle", contents, facts, COORDINATOR)
    return open_bundle(folder / "bundle", COORDINATOR.public, NOW)


@pytest.fixture(scope="session")
def b_only(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b"), TrainedFactors.B)


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("ab"), TrainedFactors.AB)


@dataclass
class FakeGate:
    """Judges by a formula, and remembers adapters and weights that it was shown."""

    model: PreTrainedModel
    formula: Callable[[int], float] = lambda number: 0.5 + number / 100
    adapters: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def baseline(self) -> GateScore:
        return GateScore(0.5, 0.01)

    def score(self, adapter: Mapping[str, Tensor]) -> GateScore:
        self.adapters.append({name: values.clone() for name, values in adapter.items()})
        self.weights.append({n: v.clone() for n, v in self.model.state_dict().items()})
        return GateScore(self.formula(len(self.adapters)), 0.01)


@dataclass
class FakeBaseline:
    gate: FakeGate

    def score(self) -> GateScore:
        return self.gate.baseline()


@dataclass
class Made:
    """A scene, and what belongs to it."""

    scene: Scene
    gate: FakeGate
    notes: list[str]


def make_scene(
    bundle: Bundle,
    rows: Path,
    clients: int = 8,
    parts: Parts | None = None,
    way: LoraAggregation = LoraAggregation.AVERAGE,
    **request: object,
) -> Made:
    """Keyword arguments are those of `Request`."""
    data: Data = read_data(rows)
    asked = Request(rows, Division(clients), **request)  # type: ignore[arg-type]
    fleet = Fleet.of(data, parts or iid(len(data.rows), clients, asked.seed), asked.seed)
    notes: list[str] = []
    warm = Warm(bundle, torch.device("cpu"), notes.append)
    full = bundle.load_emulator(torch.float32)
    assert isinstance(full, PreTrainedModel)
    gate = FakeGate(full)
    scene = Scene(asked, bundle, fleet, warm, FakeBaseline(gate), notes.append, way)  # type: ignore[arg-type]
    return Made(scene, gate, notes)


def settings(**changes: object) -> CampaignSettings:
    values: dict[str, object] = {
        "tuning": TUNING,
        "min_clients": 4,
        "min_replies": 2,
        "rounds": 2,
        "deadline_s": 3600.0,
        "tolerance": 1.0,
        "sums": SumSettings(full_weight=64),
        "poll_s": 60.0,
    }
    sample = changes.pop("sample", 0)
    values["policy"] = PolicySettings(Sample(1.0, sample))  # type: ignore[arg-type]
    return CampaignSettings(**(values | changes))  # type: ignore[arg-type]
