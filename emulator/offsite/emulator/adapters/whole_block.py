"""Whole blocks as the adapter: every parameter of every slot trains.

The published form of Offsite-Tuning (arXiv 2302.04870). Its tensors are the blocks' own, so
`load` into the full model and `plug_in` write the same values, and there is nothing to detach.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from offsite.emulator.adapters.adapter import (
    WIRE_DTYPE,
    AdapterSpec,
    check_tensors,
    copy_values,
    wire_values,
)
from offsite.emulator.blocks import slot_blocks
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.schema import TensorSpec


@dataclass(frozen=True, slots=True)
class WholeBlockAdapter:
    """See `Adapter`."""

    spec: AdapterSpec
    layer_map: LayerMap

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        for parameter in self.trainable(model).values():
            parameter.requires_grad_(True)

    def detach(self, model: nn.Module) -> None:
        model.requires_grad_(False)

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {wire_name: parameter for wire_name, _, parameter in self._parameters(model)}

    def specs(self, model: nn.Module) -> dict[str, TensorSpec]:
        return {
            name: TensorSpec(WIRE_DTYPE, tuple(parameter.shape))
            for name, parameter in self.trainable(model).items()
        }

    def extract(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return wire_values(self.trainable(model))

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        check_tensors(tensors, self.specs(model))
        copy_values(self.trainable(model), tensors)

    def plug_in(self, base_model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        self.load(base_model, tensors)
        self.detach(base_model)

    def base_names(self, base_model: nn.Module) -> dict[str, str]:
        return {wire_name: name for wire_name, name, _ in self._parameters(base_model)}

    def _parameters(self, model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(wire name, name in the model, parameter) of every parameter of every slot."""
        for slot, (path, block) in slot_blocks(model, self.layer_map).items():
            for name, parameter in block.named_parameters():
                yield f"{slot}.{name}", f"{path}.{name}", parameter
