"""A random GPT-2 of three blocks with LoRA on two of them, and canaries of random tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tests.emulator.conftest import FAMILIES, VOCABULARY
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from offsite.audit.empirical.language_model import ModelProblem
from offsite.audit.empirical.mechanism import Terms
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.training.tokens import Example

OTHERS = 30


def examples(count: int, seed: int) -> list[Example]:
    """Ragged rows whose every token is learnt."""
    random = np.random.default_rng(seed)
    lengths = random.integers(6, 11, count)
    rows = [random.integers(3, VOCABULARY, length, dtype=np.int32) for length in lengths]
    return [Example(row, np.arange(len(row)) > 0) for row in rows]


@dataclass(frozen=True)
class TinyModel:
    """A model with an adapter, ready to train."""

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]

    def problem(
        self, terms: Terms, included: NDArray[np.bool_], canaries: Sequence[Example]
    ) -> ModelProblem:
        others = examples(OTHERS, 1)
        return ModelProblem(terms, included, self.model, self.parameters, canaries, others, 0.05)


def tiny_model() -> TinyModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(FAMILIES["gpt2"]())
    built = build_emulator(
        base.eval().requires_grad_(False), Placement(1, 1), MethodName.UNIFORM_DROP, 0.5
    )
    adapter = make_adapter(AdapterSpec(AdapterKind.LORA, rank=4, alpha=8), built.layer_map)
    adapter.attach(built.model)
    parameters = adapter.trainable(built.model)
    with torch.no_grad():  # at B = 0 the gradient of A is 0
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return TinyModel(built.model.eval(), parameters)
