"""The four ways to tune; each is one process, which says what it took."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from examples.inputs.wheels import MODEL
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from benchmarks.edge_tuning.models import SIGNER
from benchmarks.transport.saying import memory_mb, say
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks, tune
from offsite.emulator.adapters.adapter import make_adapter
from offsite.emulator.base_model import load_base_model
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.linear import linear_layers
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import summed_loss
from offsite.emulator.training.run import Recipe, train
from offsite.emulator.training.tokens import Example

RATE = 1e-5
RANK = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """What every step reads: `rows` rows of `width` tokens, for `steps` steps."""

    rows: int
    width: int
    steps: int

    def examples(self, vocabulary: int) -> list[Example]:
        """Random rows of which every token is learnt; the last token is not fed."""
        random = np.random.default_rng(0)
        learnt = np.ones(self.width + 1, np.bool_)
        learnt[0] = False
        shape = (self.rows * self.steps, self.width + 1)
        return [Example(ids, learnt) for ids in random.integers(vocabulary, size=shape, dtype="i4")]


@dataclass(slots=True)
class Clock:
    """The end of every step."""

    ends: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def tick(self, done: int, total: int) -> None:
        """A `Report`."""
        self.ends.append(time.perf_counter())

    @property
    def step_s(self) -> float:
        """The median, without the first, which allocates."""
        times = np.diff(self.ends)
        return float(statistics.median(times[1:].tolist()))


def measure(way: str, folder: Path, batch: Batch) -> None:
    """Tune in one way and say what it took."""
    before_mb, clock = memory_mb("VmRSS"), Clock()
    if way.startswith("offsite"):
        trained = _tune_emulator(folder / way, batch, clock)
    else:
        trained = _tune_full(folder / MODEL, batch, clock, is_lora=way == "full_lora")
    say(
        what=way,
        peak_mb=round(memory_mb("VmHWM") - before_mb, 1),
        step_s=round(clock.step_s, 3),
        tokens_per_s=round(batch.rows * batch.width / clock.step_s, 1),
        trained_parameters=trained,
    )


def _tune_emulator(bundle_folder: Path, batch: Batch, clock: Clock) -> int:
    """As `edge-client join` does it: a verified bundle, the adapter in it, the round's loop."""
    bundle = open_bundle(bundle_folder, SIGNER.public, time.time())
    model = bundle.load_emulator(torch.bfloat16)
    assert isinstance(model, PreTrainedModel)
    adapter = make_adapter(bundle.manifest.adapter, bundle.manifest.layer_map)
    adapter.attach(model)
    first = bundle.load_adapter()
    adapter.load(model, first)
    settings = TuningSettings(
        learning_rate=RATE,
        local_steps=batch.steps,
        batch_examples=batch.rows,
        micro_batch_tokens=batch.rows * batch.width,
        max_tokens=batch.width + 1,
        validation_share=0.0,
    )
    parameters = adapter.trainable(model)
    examples = batch.examples(int(model.config.vocab_size))
    tune(model, parameters, first, examples, Task(settings), callbacks=Callbacks(clock.tick))
    return _count(parameters)


def _tune_full(folder: Path, batch: Batch, clock: Clock, *, is_lora: bool) -> int:
    """The baselines: the same loss and optimiser, on all of the full model or LoRA beside it."""
    model = load_base_model(folder)
    parameters = _low_rank(model) if is_lora else dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    model.train(True)
    rows = batch.examples(int(model.config.vocab_size))

    def loss_of(step: int) -> torch.Tensor:
        chosen = rows[step * batch.rows : (step + 1) * batch.rows]
        (micro,) = micro_batches(chosen, batch.rows * batch.width)
        with attention_kernel(micro.ids, model.dtype):
            return summed_loss(model, micro) / len(micro.targets)

    train(parameters, loss_of, Recipe(batch.steps, RATE), clock.tick)
    return _count(parameters)


def _low_rank(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return dict(_injected(model))


def _injected(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    targets = [path for path, layer in linear_layers(model) if layer is not head]
    model.requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, bias="none")
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            yield name, parameter


def _count(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())
