"""The tensors of a bundle as they are written: plain ones as they are, packed ones as their parts.

Rule it enforces: what is packed was measured. A weight that does not hold the values that an edge
will unpack is refused; `packing.middle.roundtrip` puts them there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from offsite.emulator.bundle.tensor_schema import BundleSchema
from offsite.emulator.packing.packing import SCALE, pack, unpack
from offsite.secure.errors import ConfigError

if TYPE_CHECKING:
    import torch


class StoredTensors:
    """The tensors of `emulator.safetensors` by name; the parts of one packed tensor at a time."""

    def __init__(self, weights: "Mapping[str, torch.Tensor]", schema: BundleSchema) -> None:
        self._weights, self._schema = weights, schema

    def tensor(self, name: str) -> "torch.Tensor":
        """A tensor as it is, or a part of a packed one, which is packed again for each."""
        source, _, suffix = name.rpartition(".")
        if source not in self._schema.packed:
            return self._weights[name]
        parts = self._pack(source)
        if suffix == SCALE:  # once for each tensor
            self._check_measured(source, parts)
        return parts[suffix]

    def _pack(self, name: str) -> "dict[str, torch.Tensor]":
        return pack(self._weights[name], self._schema.packing, self._schema.packed[name])

    def _check_measured(self, name: str, parts: "Mapping[str, torch.Tensor]") -> None:
        import torch

        weight, packing = self._weights[name], self._schema.packing
        if not torch.equal(unpack(parts, weight.shape, packing).to(weight.dtype), weight):
            raise ConfigError(
                f"tensor {name}: expected the values that an edge unpacks from {packing.value}, so"
                " that what is measured is what ships; call roundtrip on the emulator first"
            )
