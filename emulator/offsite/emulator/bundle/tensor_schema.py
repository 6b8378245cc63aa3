"""`schema.json`: every tensor of a bundle, signed through its digest.

Notable: a whole-block adapter starts as a copy of the emulator's own blocks, so its tensors are
not sent twice; `shared` says which tensor of the emulator holds the first value. Whatever is not
shared lies in `adapter.safetensors`, which is absent when everything is.

Rules it enforces: adapters are fp32 and named by the slots of the layer map, all slots and no
other; a shared tensor exists and has the same shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from offsite.emulator.adapters.adapter import WIRE_DTYPE
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.schema import Schema, TensorSpec, schema_from_json, schema_to_json
from offsite.emulator.strict_json import Fields, JsonObject, canonical_json, parse_json
from offsite.secure import limits
from offsite.secure.errors import PeerError

SCHEMA = "schema.json"
MAX_SCHEMA_BYTES = 2 * limits.SAFETENSORS_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class BundleSchema:
    """The tensors of the emulator, those of the adapter, and which of these are shared."""

    emulator: Schema
    adapter: Schema
    shared: Mapping[str, str]  # adapter tensor -> emulator tensor with the same first value

    @property
    def stored_adapter(self) -> dict[str, TensorSpec]:
        """The adapter tensors that have bytes of their own."""
        return {name: spec for name, spec in self.adapter.items() if name not in self.shared}

    def to_bytes(self) -> bytes:
        """The contents of `schema.json`."""
        shared: JsonObject = dict(self.shared)
        return canonical_json(
            {
                "emulator": schema_to_json(self.emulator),
                "adapter": schema_to_json(self.adapter),
                "shared": shared,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, layer_map: LayerMap) -> "BundleSchema":
        """Reads `schema.json`; raises PeerError unless it fits itself and the layer map."""
        fields = Fields(parse_json(data, SCHEMA, MAX_SCHEMA_BYTES), SCHEMA)
        emulator = schema_from_json(fields.value("emulator"), f"{SCHEMA}: emulator")
        adapter = schema_from_json(fields.value("adapter"), f"{SCHEMA}: adapter")
        shared = fields.object("shared", limits.TENSORS)
        fields.close()
        _check_adapter(adapter, layer_map)
        pairs = {name: _source(name, shared[name], adapter, emulator) for name in shared}
        if len(set(pairs.values())) != len(pairs):
            raise PeerError(f"{SCHEMA}: expected every shared tensor once, found one twice")
        return cls(emulator, adapter, pairs)


def _check_adapter(adapter: Schema, layer_map: LayerMap) -> None:
    found = {".".join(name.split(".")[:2]) for name in adapter}
    expected = {slot.name for slot in layer_map.slots}
    if found != expected or not adapter:
        raise PeerError(
            f"{SCHEMA}: expected adapter tensors in the slots {sorted(expected)}, found"
            f" {sorted(found)[:8]}"
        )
    for name, spec in adapter.items():
        if spec.dtype != WIRE_DTYPE or not spec.elements:
            raise PeerError(f"{SCHEMA}: {name}: expected {WIRE_DTYPE} values, found {spec}")


def _source(name: str, source: object, adapter: Schema, emulator: Schema) -> str:
    if not isinstance(source, str) or source not in emulator or name not in adapter:
        raise PeerError(f"{SCHEMA}: {name}: expected to share a tensor of the emulator")
    if emulator[source].shape != adapter[name].shape or not emulator[source].is_float:
        raise PeerError(
            f"{SCHEMA}: {name}: expected to share {adapter[name]}, found {emulator[source]}"
        )
    return source
