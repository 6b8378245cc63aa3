"""The interface of an adapter: the tensors in the slots that train and travel.

Notable decisions:

* An adapter object holds no tensors. It knows its spec and the layer map, and works on any model
  that the map describes: the full one or an emulator; which one follows from its blocks.
* A tensor is named `<slot>.<path inside the block>`, e.g. `bottom.0.mlp.up_proj.weight`, and is
  fp32 on the wire whatever the model computes in. bf16 and fp16 pass through fp32 unchanged, so
  plugging an untouched adapter back gives the full model bit for bit.
* Two ways into the full model. `attach` and `load` put the adapter beside or into its weights as
  training does, again and again, for evaluation; `plug_in` leaves a plain model of the original
  architecture, for export.

Rules: a set of tensors is checked as a whole (missing, extra, dtype, shape, finite) before the
first value is written. Source: Offsite-Tuning, arXiv 2302.04870, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from offsite.emulator.layer_map import LayerMap
from offsite.emulator.schema import TensorSpec, check_finite, check_schema, spec_of
from offsite.emulator.strict_json import Fields, JsonObject, JsonValue
from offsite.secure.errors import ConfigError, PeerError

if TYPE_CHECKING:
    import torch
    from torch import nn

WIRE_DTYPE = "F32"
MAX_RANK = 4096
MAX_ALPHA = 65536


class AdapterKind(Enum):
    """What trains in a slot."""

    WHOLE_BLOCK = "whole_block"
    LORA = "lora"


class TrainedFactors(Enum):
    """What of a LoRA's product B·A trains and travels."""

    B = "b"
    """FFA-LoRA: A stays as it was drawn. B·A is linear in what travels, so a mean of updates is the
    update by the mean; see `lora.py`."""
    AB = "ab"
    """Both. The product of means is not the mean of products."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Kind of the adapter and, for LoRA, rank, alpha, the seed of its first values, what trains."""

    kind: AdapterKind
    rank: int = 16
    alpha: int = 32
    seed: int = 0
    trains: TrainedFactors = TrainedFactors.B

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"adapter rank is {self.rank}; expected 1 to {MAX_RANK}")
        if not 1 <= self.alpha <= MAX_ALPHA:
            raise ConfigError(f"adapter alpha is {self.alpha}; expected 1 to {MAX_ALPHA}")

    @property
    def scaling(self) -> float:
        """Factor of the low-rank product, alpha / rank."""
        return self.alpha / self.rank

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "kind": self.kind.value,
            "rank": self.rank,
            "alpha": self.alpha,
            "seed": self.seed,
            "trains": self.trains.value,
        }

    @classmethod
    def from_json(cls, value: JsonValue) -> "AdapterSpec":
        """Read what `to_json` gave. Raises PeerError, since it comes from the other side."""
        fields = Fields(value, "adapter")
        kind = fields.text("kind", 32)
        rank = fields.integer("rank", 1, MAX_RANK)
        alpha = fields.integer("alpha", 1, MAX_ALPHA)
        seed = fields.integer("seed", 0, 2**63 - 1)
        trains = fields.text("trains", 32)
        fields.close()
        try:
            return cls(AdapterKind(kind), rank, alpha, seed, TrainedFactors(trains))
        except (ValueError, ConfigError) as error:
            raise PeerError(f"adapter: {error}") from None


class Adapter(Protocol):
    """What trains in the slots of a model, by name."""

    @property
    def spec(self) -> AdapterSpec:
        """Kind and size."""

    @property
    def layer_map(self) -> LayerMap:
        """The map whose slots it fills."""

    def attach(self, model: "nn.Module") -> None:
        """Make the adapter's parameters the only trainable ones; harmless when repeated."""

    def detach(self, model: "nn.Module") -> None:
        """Freeze the model and remove whatever `attach` put beside its weights."""

    def trainable(self, model: "nn.Module") -> "dict[str, nn.Parameter]":
        """The adapter's parameters in an attached model, by wire name."""

    def specs(self, model: "nn.Module") -> dict[str, TensorSpec]:
        """The schema of the adapter's tensors, attached or not."""

    def extract(self, model: "nn.Module") -> "dict[str, torch.Tensor]":
        """Copies of the adapter's values in an attached model: fp32, on the CPU."""

    def load(self, model: "nn.Module", tensors: "Mapping[str, torch.Tensor]") -> None:
        """Set the adapter's values in an attached model. Raises PeerError naming the tensor."""

    def plug_in(self, base_model: "nn.Module", tensors: "Mapping[str, torch.Tensor]") -> None:
        """Write the adapter into the full model's own weights and leave it detached.

        Raises PeerError naming the tensor; then nothing was written.
        """

    def base_names(self, base_model: "nn.Module") -> dict[str, str]:
        """Wire name to the dotted name inside the full model, for export."""


def make_adapter(spec: AdapterSpec, layer_map: LayerMap) -> Adapter:
    """The adapter that a spec describes.

    Raises ConfigError when no slot is there to fill, or when one is compressed and would not fit
    the full model as a whole block.
    """
    if not layer_map.slots:
        raise ConfigError("no adapter slots: place at least one bottom, spread or top block")
    if spec.kind is AdapterKind.WHOLE_BLOCK and any(slot.is_middle for slot in layer_map.slots):
        raise ConfigError(
            "whole_block adapters cannot train middle slots, whose blocks are compressed; set"
            " adapter.kind to lora, or leave placement.middle_lora off"
        )
    if spec.kind is AdapterKind.LORA:
        from offsite.emulator.adapters.lora import LoraAdapter

        return LoraAdapter(spec, layer_map)
    from offsite.emulator.adapters.whole_block import WholeBlockAdapter

    return WholeBlockAdapter(spec, layer_map)


def check_tensors(
    tensors: "Mapping[str, torch.Tensor]", expected: Mapping[str, TensorSpec]
) -> None:
    """Raises PeerError that names the first tensor that is not as expected, or not finite."""
    check_schema({name: _found_spec(name, tensor) for name, tensor in tensors.items()}, expected)
    for name, tensor in tensors.items():
        check_finite(name, tensor)


def _found_spec(name: str, tensor: "torch.Tensor") -> TensorSpec:
    try:
        return spec_of(tensor)
    except ConfigError as error:
        raise PeerError(f"tensor {name}: {error}") from None


def copy_values(
    parameters: "Mapping[str, torch.Tensor]", tensors: "Mapping[str, torch.Tensor]"
) -> None:
    """Write checked values over parameters, cast to their dtype."""
    for name, parameter in parameters.items():
        parameter.detach().copy_(tensors[name])


def wire_values(parameters: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Contiguous fp32 copies on the CPU that share nothing with the model."""
    import torch

    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, parameter in parameters.items()
    }
