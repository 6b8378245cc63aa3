"""How much of an emulator ships: bytes, and the share of the full model's middle.

Notable: one definition of bytes for the fidelity report, the search's budget and the benchmark: all
tensors that a bundle holds, packed as they are stored, without the headers of their files. A LoRA
has tensors of its own; whole blocks start as the emulator's, which are not sent twice.
"""

from collections.abc import Mapping

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import Emulator
from offsite.emulator.harmoniser import HARMONISERS
from offsite.emulator.packing.middle import packed_axes
from offsite.emulator.packing.packing import Packing, packed_specs
from offsite.emulator.weights import named_weights


def shipped_bytes(emulator: Emulator, packing: Packing, adapter: AdapterSpec) -> int:
    """Bytes of the weights as a bundle stores them, and of the first values of the adapter."""
    weights = named_weights(emulator.model)
    packed: Mapping[str, int] = {}
    if packing is not Packing.NONE:
        packed = packed_axes(emulator.model, emulator.layer_map)
    whole = sum(tensor.nbytes for name, tensor in weights.items() if name not in packed)
    parts = sum(
        spec.num_bytes
        for name, axis in packed.items()
        for spec in packed_specs(weights[name].shape, packing, axis).values()
    )
    return whole + parts + _adapter_bytes(emulator, adapter)


def middle_share(emulator: Emulator, middle_parameters: int) -> float:
    """Share of the full model's `middle_parameters` that ships, whatever ratio was asked for.

    What stands between the blocks in the place of dropped ones counts too.
    """
    path = find_blocks(emulator.model).path
    positions = emulator.layer_map.middle
    prefixes = (f"{HARMONISERS}.", *(f"{path}.{position}." for position in positions))
    weights = named_weights(emulator.model)
    shipped = sum(weight.numel() for name, weight in weights.items() if name.startswith(prefixes))
    return min(1.0, shipped / max(1, middle_parameters))


def _adapter_bytes(emulator: Emulator, spec: AdapterSpec) -> int:
    if spec.kind is AdapterKind.WHOLE_BLOCK:
        return 0
    specs = make_adapter(spec, emulator.layer_map).specs(emulator.model)
    return sum(spec.num_bytes for spec in specs.values())
