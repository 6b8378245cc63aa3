"""A tiny model, rows that only memory can predict, and an adapter tuned on half of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from offsite.audit.attack.attack import Rows, Target
from offsite.audit.attack.planted import Planted
from offsite.audit.attack.settings import AttackSettings
from offsite.emulator.adapters.adapter import Adapter, AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.adapters.plugged import attached
from offsite.emulator.adapters.untouched import untouched
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.leak.task_tuning import TaskRecipe, tune_on_task
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import token_losses
from offsite.emulator.training.tokens import Example

VOCAB = 96
ENTROPY = bytes(range(32))
SETTINGS = AttackSettings(resamples=999, allowed_exposure_bits=4.5)
"""Six secrets show no mean below 3 bits: their interval is wide."""
BLOCKS = 3
MEMBERS = 160
HELD_OUT = 240
CLIP_NORM = 1.0
SECRETS = 6
CANDIDATES = 63
OVERFIT = TaskRecipe(steps=90, learning_rate=5e-3, batch_examples=32)


def random_model() -> PreTrainedModel:
    """A frozen Llama of three blocks, always the same."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def random_rows(count: int, seed: int) -> list[Example]:
    """Rows of 6 to 12 random tokens, of which all but the first are learnt."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = random.integers(2, VOCAB, random.integers(6, 13)).astype(np.int32)
        rows.append(Example(ids, np.arange(len(ids)) > 0))
    return rows


def ruled_rows(count: int, seed: int) -> list[Example]:
    """Rows of 8 tokens in steps of 7, one token in ten at random."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = 2 + (random.integers(VOCAB) + 7 * np.arange(8)) % (VOCAB - 2)
        ids = np.where(random.random(8) < 0.1, random.integers(2, VOCAB, 8), ids).astype(np.int32)
        rows.append(Example(ids, np.arange(8) > 0))
    return rows


def planted_rows() -> tuple[Planted, ...]:
    """Secrets of 6 random tokens after a prompt of their own."""
    random = np.random.default_rng(99)
    planted = []
    for _ in range(SECRETS):
        prompt = random.integers(2, VOCAB, 4)
        examples = [
            Example(
                np.concatenate([prompt, random.integers(2, VOCAB, 6)]).astype(np.int32),
                np.arange(10) >= 4,
            )
            for _ in range(CANDIDATES + 1)
        ]
        planted.append(Planted(examples[0], tuple(examples[1:])))
    return tuple(planted)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A model, the adapter as it was received, and who was in the tuning."""

    model: PreTrainedModel
    adapter: Adapter
    before: Mapping[str, Tensor]
    rows: Rows

    @property
    def tuned_on(self) -> list[Example]:
        secrets = [plant.secret for plant in self.rows.planted]
        return [example for unit in self.rows.members for example in unit] + secrets

    def target(self, after: Mapping[str, Tensor]) -> Target:
        return Target(self.model, self.adapter, self.before, after)


@cache
def scene(kind: AdapterKind = AdapterKind.WHOLE_BLOCK, learnable: bool = False) -> Scene:
    """Everything but a tuned adapter; ``learnable`` rows follow a rule that held-out ones share."""
    model = random_model()
    layer_map = LayerMap.of(Placement(1, 1), BLOCKS, range(1, BLOCKS - 1))
    adapter = make_adapter(AdapterSpec(kind, 8, 16), layer_map)
    make = ruled_rows if learnable else random_rows
    rows = [(example,) for example in make(MEMBERS + HELD_OUT, seed=1)]
    first = untouched(adapter, model)
    return Scene(model, adapter, first, Rows(rows[:MEMBERS], rows[MEMBERS:], planted_rows()))


@cache
def overfitted(kind: AdapterKind = AdapterKind.WHOLE_BLOCK) -> Mapping[str, Tensor]:
    """Tuned until it knows its rows by heart."""
    here = scene(kind)
    return tune_on_task(here.model, here.adapter, here.tuned_on, OVERFIT).tensors


@cache
def private(noise_multiplier: float, steps: int) -> Mapping[str, Tensor]:
    """Tuned on learnable rows by their clipped gradients, all in every step, and noise."""
    here = scene(learnable=True)
    noise = torch.Generator().manual_seed(5)
    with attached(here.model, here.adapter):
        parameters = list(here.adapter.trainable(here.model).values())
        optimiser = torch.optim.Adam(parameters, 3e-3)
        for _ in range(steps):
            total = _clipped_sum(here.model, parameters, here.tuned_on)
            for parameter, sum_ in zip(parameters, total, strict=True):
                drawn = torch.randn(sum_.shape, generator=noise)
                parameter.grad = (sum_ + noise_multiplier * CLIP_NORM * drawn) / MEMBERS
            optimiser.step()
        return here.adapter.extract(here.model)


def _clipped_sum(
    model: PreTrainedModel, parameters: list[nn.Parameter], rows: Sequence[Example]
) -> list[Tensor]:
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for example in rows:
        loss = token_losses(model, micro_batches([example], 64)[0]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_.add_(gradient, alpha=min(1.0, CLIP_NORM / norm))
    return total


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """Delta of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    a, b = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    return phi(a - b) - math.exp(epsilon) * phi(-a - b)
