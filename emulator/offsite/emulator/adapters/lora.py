"""LoRA on every linear layer of the slots, through `peft`; in a middle slot on its attention only.

A layer of weight W (out, in) computes x·Wᵀ + (alpha/rank)·x·Aᵀ·Bᵀ, with A (rank, in) and B (out,
rank). `attach` injects peft's own layers, unmerged; `plug_in` merges (alpha/rank)·B·A into W.

Notable decisions:

* B alone trains, unless the spec says otherwise (FFA-LoRA). What edges return is averaged, and the
  mean of B_i·A_i is not the product of the means, unless A is the same everywhere; then it is. And
  noise on both factors is multiplied into noise on noise, on one it is not. A is neither shipped
  nor returned: both sides draw it from the spec's seed, and updates are about half as large.
* A starts uniform in ±1/√in, as peft's default does, but from a seed per tensor name, so the
  first values depend neither on the order of layers nor on anything drawn before. B starts at 0.
* The draw is defined here, on SHAKE-256 and arithmetic that IEEE 754 rounds exactly, and not left
  to torch: two machines that drew different A would add up what does not belong together, and
  nobody would notice. Its rows are drawn in order, so A of a lower rank is the beginning of A of a
  higher one.
* A and B are fp32 whatever the model is.
* Merging adds in fp32, rounds once to the model's dtype, and leaves alone every weight whose
  change is exactly 0, so that merging an untouched adapter keeps even negative zeros. In bf16 the
  rounding means that a merged model differs slightly from an unmerged one; in fp32 it does not.
* A compressed block's MLP may have other sizes than the full model's, its attention never has:
  that is why only the attention of a middle slot is covered. A factored layer has the in and out
  sizes of the layer it stands for, so what is tuned beside it merges into the full weight.
* `peft_config` names every target by its full path in the full model, so what is exported loads
  in plain `PeftModel.from_pretrained` and touches nothing outside the slots.

Source: LoRA, arXiv 2106.09685, section 4.1; FFA-LoRA, arXiv 2403.12313.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.emulator.adapters.adapter import (
    WIRE_DTYPE,
    AdapterSpec,
    TrainedFactors,
    check_tensors,
    copy_values,
    wire_values,
)
from offsite.emulator.blocks import in_attention, slot_blocks
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.linear import Linear, features, linear_layers, weight_out_in
from offsite.emulator.schema import TensorSpec
from offsite.secure.errors import ConfigError

ADAPTER_NAME = "default"
"""peft's name for a single adapter; it is part of the parameter names inside a model."""

FACTORS = ("lora_A", "lora_B")
TRAINED = {TrainedFactors.B: FACTORS[1:], TrainedFactors.AB: FACTORS}
_DRAW = "offsite/lora-a/1"


@dataclass(frozen=True, slots=True)
class Target:
    """A linear layer that the adapter covers."""

    wire_name: str  # slot and path inside the block
    path: str  # dotted path inside the model
    layer: Linear

    def name(self, factor: str) -> str:
        """The wire name of a factor."""
        return f"{self.wire_name}.{factor}.weight"


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """See `Adapter`."""

    spec: AdapterSpec
    layer_map: LayerMap

    @property
    def trained(self) -> tuple[str, ...]:
        """The factors that train and travel."""
        return TRAINED[self.spec.trains]

    def attach(self, model: nn.Module) -> None:
        if not _is_attached(model):
            with warnings.catch_warnings():  # a model may mix orientations; peft sees each layer's
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
                inject_adapter_in_model(self.peft_config(model), model, ADAPTER_NAME)
            self._set_first_values(model)
        model.requires_grad_(False)
        for parameter in self.trainable(model).values():
            parameter.requires_grad_(True)

    def detach(self, model: nn.Module) -> None:
        for path, layer in _lora_layers(model):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        model.requires_grad_(False)

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = {}
        for target in self.targets(model):
            lora = model.get_submodule(target.path)
            if not isinstance(lora, LoraLayer):
                raise ConfigError(f"{target.path} has no LoRA; attach the adapter first")
            for factor in self.trained:
                parameters[target.name(factor)] = getattr(lora, factor)[ADAPTER_NAME].weight
        return parameters

    def specs(self, model: nn.Module) -> dict[str, TensorSpec]:
        schema = {}
        for target in self.targets(model):
            shapes = self._shapes(target)
            for factor in self.trained:
                schema[target.name(factor)] = TensorSpec(WIRE_DTYPE, shapes[factor])
        return schema

    def extract(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return wire_values(self.trainable(model))

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        check_tensors(tensors, self.specs(model))
        copy_values(self.trainable(model), tensors)

    def plug_in(self, base_model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        check_tensors(tensors, self.specs(base_model))
        self.detach(base_model)
        for target in self.targets(base_model):
            low, high = self.factors(target, tensors)
            _merge(target.layer, low, high, self.spec.scaling)

    def base_names(self, base_model: nn.Module) -> dict[str, str]:
        return {
            target.name(factor): f"{target.path}.{factor}.weight"
            for target in self.targets(base_model)
            for factor in self.trained
        }

    def factors(
        self, target: Target, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, in) and B (out, rank) of a layer; A as it was drawn where it does not train."""
        low, high = (target.name(factor) for factor in FACTORS)
        if self.spec.trains is TrainedFactors.AB:
            return tensors[low], tensors[high]
        return self._drawn(target), tensors[high]

    def peft_tensors(
        self, base_model: nn.Module, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Both factors of every layer by their dotted names in the full model, as peft has them."""
        found = {}
        for target in self.targets(base_model):
            for factor, values in zip(FACTORS, self.factors(target, tensors), strict=True):
                found[f"{target.path}.{factor}.weight"] = values
        return found

    def targets(self, model: nn.Module) -> list[Target]:
        """The linear layers of the slots, attached or not, in slot order."""
        found = []
        middle = {slot.name for slot in self.layer_map.slots if slot.is_middle}
        for slot, (path, block) in slot_blocks(model, self.layer_map).items():
            for name, layer in linear_layers(block):
                if f".{ADAPTER_NAME}" in name:  # peft's own A and B
                    continue
                if slot in middle and not in_attention(block, name):
                    continue
                name = name.removesuffix(".base_layer")
                found.append(Target(f"{slot}.{name}", f"{path}.{name}", layer))
        return found

    def peft_config(self, model: nn.Module) -> LoraConfig:
        """The config under which plain peft puts the same layers into `model`."""
        targets = self.targets(model)
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            target_modules=[target.path for target in targets],
            fan_in_fan_out=isinstance(targets[0].layer, Conv1D),
            bias="none",
            task_type="CAUSAL_LM",
        )

    def _set_first_values(self, model: nn.Module) -> None:
        """Seeded A, zero B, both fp32, over what peft drew."""
        for target in self.targets(model):
            lora = model.get_submodule(target.path)
            low, high = (getattr(lora, factor)[ADAPTER_NAME].float().weight for factor in FACTORS)
            low.detach().copy_(self._drawn(target))
            high.detach().zero_()

    def _drawn(self, target: Target) -> torch.Tensor:
        shape = self._shapes(target)[FACTORS[0]]
        return first_low(self.spec.seed, target.wire_name, shape)

    def _shapes(self, target: Target) -> dict[str, tuple[int, int]]:
        inputs, outputs = features(target.layer)
        return dict(
            zip(FACTORS, ((self.spec.rank, inputs), (outputs, self.spec.rank)), strict=True)
        )


def first_low(seed: int, wire_name: str, shape: Sequence[int]) -> torch.Tensor:
    """The first A (rank, in) of a layer, fp32, on the CPU, the same on every machine.

    Row by row from the words u of SHAKE-256(seed, name), 32 bits each, little-endian:

        ((u + 1/2) / 2³¹ - 1) / √in,  in fp64, then rounded to fp32
    """
    rank, inputs = shape
    stream = hashlib.shake_256(f"{_DRAW}|{seed}|{wire_name}".encode())
    words = np.frombuffer(stream.digest(4 * rank * inputs), "<u4")
    values = ((words + 0.5) * 2.0**-31 - 1.0) / math.sqrt(inputs)
    return torch.from_numpy(values.astype(np.float32)).view(rank, inputs)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    yield from [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]


def _is_attached(model: nn.Module) -> bool:
    return next(_lora_layers(model), None) is not None


def _merge(layer: Linear, low: torch.Tensor, high: torch.Tensor, scaling: float) -> None:
    """W ← W + scaling·B·A, in place."""
    weight = weight_out_in(layer)  # (out, in), a view
    change = scaling * (high.to(weight.device) @ low.to(weight.device))
    merged = (weight.float() + change).to(weight.dtype)
    weight.copy_(torch.where(change == 0, weight, merged))
