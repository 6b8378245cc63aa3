"""LoRA on every linear layer of the slots, through `peft`; in a middle slot on its attention only.

A layer of weight W (out, in) computes x·Wᵀ + (alpha/rank)·x·Aᵀ·Bᵀ; A (rank, in) and B (out, rank)
train. `attach` injects peft's own layers, unmerged; `plug_in` merges (alpha/rank)·B·A into W.

Notable decisions:

* A starts uniform in ±1/√in, as peft's default does, but from a seed per tensor name, so the
  first values depend neither on the order of layers nor on anything drawn before. B starts at 0.
* A and B are fp32 whatever the model is.
* Merging adds in fp32, rounds once to the model's dtype, and leaves alone every weight whose
  change is exactly 0, so that merging an untouched adapter keeps even negative zeros. In bf16 the
  rounding means that a merged model differs slightly from an unmerged one; in fp32 it does not.
* A compressed block's MLP may have other sizes than the full model's, its attention never has:
  that is why only the attention of a middle slot is covered. A factored layer has the in and out
  sizes of the layer it stands for, so what is tuned beside it merges into the full weight.
* `peft_config` names every target by its full path in the full model, so what is exported loads
  in plain `PeftModel.from_pretrained` and touches nothing outside the slots.

Source: LoRA, arXiv 2106.09685, section 4.1.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.emulator.adapters.adapter import (
    WIRE_DTYPE,
    AdapterSpec,
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


@dataclass(frozen=True, slots=True)
class Target:
    """A linear layer that the adapter covers."""

    wire_name: str  # slot and path inside the block
    path: str  # dotted path inside the model
    layer: Linear


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """See `Adapter`."""

    spec: AdapterSpec
    layer_map: LayerMap

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        if not _is_attached(model):
            with warnings.catch_warnings():  # a model may mix orientations; peft sees each layer's
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
                inject_adapter_in_model(self.peft_config(model), model, ADAPTER_NAME)
            self._set_first_values(model)
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
            for factor in FACTORS:
                weight = getattr(lora, factor)[ADAPTER_NAME].weight
                parameters[f"{target.wire_name}.{factor}.weight"] = weight
        return parameters

    def specs(self, model: nn.Module) -> dict[str, TensorSpec]:
        schema = {}
        for target in self.targets(model):
            inputs, outputs = features(target.layer)
            for factor, shape in zip(
                FACTORS, ((self.spec.rank, inputs), (outputs, self.spec.rank)), strict=True
            ):
                schema[f"{target.wire_name}.{factor}.weight"] = TensorSpec(WIRE_DTYPE, shape)
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
            low, high = (tensors[f"{target.wire_name}.{factor}.weight"] for factor in FACTORS)
            _merge(target.layer, low, high, self.spec.scaling)

    def base_names(self, base_model: nn.Module) -> dict[str, str]:
        return {
            f"{target.wire_name}.{factor}.weight": f"{target.path}.{factor}.weight"
            for target in self.targets(base_model)
            for factor in FACTORS
        }

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
            low.detach().copy_(first_low(self.spec.seed, target.wire_name, low.shape))
            high.detach().zero_()


def first_low(seed: int, wire_name: str, shape: Sequence[int]) -> torch.Tensor:
    """The first A (rank, in) of a layer, fp32, from a random source of its own."""
    digest = hashlib.sha256(f"{seed}:{wire_name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bound = shape[1] ** -0.5
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)


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
