"""The packings there are, and what a packed tensor is stored as.

A packing makes the compressed middle smaller on the wire and on the disk. It saves no memory while
tuning: an edge unpacks every tensor once, when it loads the emulator.

    none    as it is
    int8    I8 values in -127 to 127 and one F32 scale per output channel       8 bits a weight
    nf4     two 4-bit indices a byte and one F32 scale per block of 64        4.5 bits a weight

Rules: `pack` is deterministic, and packing what was unpacked, in whatever dtype the model holds it,
unpacks to the same values again; so what is measured after `roundtrip` is what ships. `unpack`
trusts nothing: parts, dtypes, shapes and scales are checked first.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from offsite.emulator.schema import TensorSpec
from offsite.secure.errors import ConfigError, IntegrityError, PeerError

if TYPE_CHECKING:
    import torch

SCALE = "scale"
NF4_BLOCK = 64
"""Consecutive values, in row-major order, that share a scale."""
MAX_SCALE = 3.4e38 / 128
"""No value of a byte times this is infinite."""


class Packing(Enum):
    """How the weights of the middle are stored."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"


def is_packable(spec: TensorSpec) -> bool:
    """Whether a tensor can be packed: floats, two axes or more, none of them empty."""
    return spec.is_float and len(spec.shape) >= 2 and spec.elements > 0


def packed_specs(shape: Sequence[int], packing: Packing, axis: int = -1) -> dict[str, TensorSpec]:
    """The parts of a packed tensor by suffix; for `NONE` there are none.

    `axis` is the one over which a scale of int8 is shared: the inputs of a linear layer.

    Raises:
        PeerError: no tensor of this shape is packed like this.
    """
    elements = TensorSpec("F32", tuple(shape)).elements
    if len(shape) < 2 or not elements or not -len(shape) <= axis < len(shape):
        raise PeerError(f"expected to pack two axes or more, found {list(shape)} by axis {axis}")
    match packing:
        case Packing.NONE:
            return {}
        case Packing.INT8:
            scales = list(shape)
            scales[axis] = 1
            return {
                "int8": TensorSpec("I8", tuple(shape)),
                SCALE: TensorSpec("F32", tuple(scales)),
            }
        case Packing.NF4:
            return {
                "nf4": TensorSpec("U8", (-(-elements // 2),)),
                SCALE: TensorSpec("F32", (-(-elements // NF4_BLOCK),)),
            }


def pack(tensor: "torch.Tensor", packing: Packing, axis: int = -1) -> "dict[str, torch.Tensor]":
    """The parts of `tensor` by suffix, on its device, as `packed_specs` describes them.

    Raises:
        ConfigError: `packing` is `NONE`.
    """
    from offsite.emulator.packing import int8, nf4

    match packing:
        case Packing.NONE:
            raise ConfigError("a tensor that is not packed has no parts")
        case Packing.INT8:
            return int8.pack(tensor, axis)
        case Packing.NF4:
            return nf4.pack(tensor)


def unpack(
    parts: "Mapping[str, torch.Tensor]", shape: Sequence[int], packing: Packing
) -> "torch.Tensor":
    """The values, F32, in the given shape.

    Raises:
        IntegrityError: the parts are not those of such a tensor, or a scale is negative, not
            finite or absurd.
    """
    from offsite.emulator.packing import int8, nf4

    _check(parts, shape, packing)
    if packing is Packing.INT8:
        return int8.unpack(parts)
    return nf4.unpack(parts, shape)


def _check(parts: "Mapping[str, torch.Tensor]", shape: Sequence[int], packing: Packing) -> None:
    from offsite.emulator.schema import check_schema, spec_of

    found = {suffix: spec_of(part) for suffix, part in parts.items()}
    candidates = [packed_specs(shape, packing, axis) for axis in range(len(shape))]
    if found not in candidates:
        check_schema(found, candidates[-1])
    scale = parts[SCALE]
    if not bool(((scale >= 0) & (scale <= MAX_SCALE)).all()):  # NaN is neither
        raise IntegrityError(f"expected scales from 0 to {MAX_SCALE:g}, found another")
