"""`schema.json`: every tensor of a bundle, signed through its digest.

Notable:
- a whole-block adapter starts as a copy of the emulator's own blocks, so its tensors are not sent
  twice; `shared` says which tensor of the emulator holds the first value. Whatever is not shared
  lies in `adapter.safetensors`, which is absent when everything is;
- `emulator` lists the tensors that a model is made of, with the dtype they had when it was written.
  Those named in `packed` lie in `emulator.safetensors` as their parts, `<name>.<suffix>`, whose
  dtypes and shapes follow from the manifest's packing (`packing.packed_specs`).

Rules it enforces: adapters are fp32 and named by the slots of the layer map, all slots and no
other; a shared tensor exists, has the same shape and is not packed; what is packed can be, and no
part has the name of another tensor.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from offsite.emulator.adapters.adapter import WIRE_DTYPE
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.packing.packing import Packing, is_packable, packed_specs
from offsite.emulator.schema import Schema, TensorSpec, schema_from_json, schema_to_json
from offsite.emulator.strict_json import Fields, JsonObject, canonical_json, parse_json
from offsite.secure import limits
from offsite.secure.errors import PeerError

SCHEMA = "schema.json"
MAX_SCHEMA_BYTES = 2 * limits.SAFETENSORS_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class BundleSchema:
    """The tensors of the emulator, those of the adapter, and how they are stored."""

    emulator: Schema
    adapter: Schema
    shared: Mapping[str, str]  # adapter tensor -> emulator tensor with the same first value
    packing: Packing = Packing.NONE
    packed: Mapping[str, int] = field(default_factory=dict)  # emulator tensor -> axis of its inputs

    @property
    def stored_adapter(self) -> dict[str, TensorSpec]:
        """The adapter tensors that have bytes of their own."""
        return {name: spec for name, spec in self.adapter.items() if name not in self.shared}

    @property
    def stored_emulator(self) -> dict[str, TensorSpec]:
        """What `emulator.safetensors` holds: the parts of packed tensors, the others as they are."""
        stored = {name: spec for name, spec in self.emulator.items() if name not in self.packed}
        for name in self.packed:
            stored |= {f"{name}.{suffix}": spec for suffix, spec in self.parts(name).items()}
        return stored

    @property
    def adapter_sha256(self) -> bytes:
        """The digest of names, dtypes and shapes of the adapter's tensors."""
        return hashlib.sha256(canonical_json(schema_to_json(self.adapter))).digest()

    def parts(self, name: str) -> dict[str, TensorSpec]:
        """The parts of a packed tensor by suffix."""
        return packed_specs(self.emulator[name].shape, self.packing, self.packed[name])

    def to_bytes(self) -> bytes:
        """The contents of `schema.json`."""
        shared: JsonObject = dict(self.shared)
        packed: JsonObject = dict(self.packed)
        return canonical_json(
            {
                "emulator": schema_to_json(self.emulator),
                "adapter": schema_to_json(self.adapter),
                "shared": shared,
                "packed": packed,
            }
        )

    @classmethod
    def from_bytes(
        cls, data: bytes, layer_map: LayerMap, packing: Packing = Packing.NONE
    ) -> "BundleSchema":
        """Reads `schema.json`; raises PeerError unless it fits itself and the manifest."""
        fields = Fields(parse_json(data, SCHEMA, MAX_SCHEMA_BYTES), SCHEMA)
        emulator = schema_from_json(fields.value("emulator"), f"{SCHEMA}: emulator")
        adapter = schema_from_json(fields.value("adapter"), f"{SCHEMA}: adapter")
        shared = fields.object("shared", limits.TENSORS)
        packed = fields.object("packed", limits.TENSORS)
        fields.close()
        _check_adapter(adapter, layer_map)
        pairs = {name: _source(name, shared[name], adapter, emulator) for name in shared}
        if len(set(pairs.values())) != len(pairs):
            raise PeerError(f"{SCHEMA}: expected every shared tensor once, found one twice")
        axes = {name: _axis(name, packed[name], emulator, packing) for name in packed}
        schema = cls(emulator, adapter, pairs, packing, axes)
        _check_stored(schema)
        return schema


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


def _axis(name: str, axis: object, emulator: Schema, packing: Packing) -> int:
    if packing is Packing.NONE:
        raise PeerError(f"{SCHEMA}: {name}: expected no packed tensor, as the manifest says")
    if name not in emulator or not is_packable(emulator[name]):
        raise PeerError(f"{SCHEMA}: {name}: expected to pack floats of two axes or more")
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise PeerError(f"{SCHEMA}: {name}: expected the number of an axis, found {axis!a:.64}")
    if not 0 <= axis < len(emulator[name].shape):
        raise PeerError(f"{SCHEMA}: {name}: expected an axis of {emulator[name]}, found {axis}")
    return axis


def _check_stored(schema: BundleSchema) -> None:
    both = sorted(set(schema.shared.values()) & schema.packed.keys())
    if both:
        raise PeerError(f"{SCHEMA}: {both[0]}: expected it shared or packed, found both")
    count = sum(len(schema.parts(name)) for name in schema.packed)
    if len(schema.stored_emulator) != len(schema.emulator) - len(schema.packed) + count:
        raise PeerError(f"{SCHEMA}: expected parts with names of their own, found one taken")
