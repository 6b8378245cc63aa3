"""What tensors a file must hold, and the only way tensors enter the process: safetensors, checked.

Notable:
- the header is bounded before it is read, and validated whole before any tensor is: exact keys,
  known dtypes, offsets that tile the data without gap or overlap, exact file size;
- tensors are read and written one at a time, by `readinto`, never by a memory map (a file that is
  cut while it is mapped kills the process);
- finiteness of a file is checked on its bit patterns in chunks, without torch, so that a verifier
  stays small. torch is imported by the functions that make tensors.

Rules it enforces: no pickle; names, shapes and dtypes equal the signed schema; no NaN, no infinity.

Source: the safetensors format, https://github.com/huggingface/safetensors#format. Its own loader
accepts NaN and took 8 s and 874 MB for a hostile 28 MB header, hence the limits here.
"""

import io
import json
import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, TypeAlias

import numpy as np

from offsite.emulator.strict_json import Fields, JsonValue, parse_json
from offsite.secure import limits
from offsite.secure.errors import ConfigError, IntegrityError, PeerError

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,255}")
_MAX_AXES = 8
_MAX_AXIS = 1 << 40


@dataclass(frozen=True, slots=True)
class _Dtype:
    torch_name: str
    item_bytes: int
    exponent_mask: int = 0  # the bits that are all ones in NaN and infinities; 0 for integers


_DTYPES = {
    "F64": _Dtype("float64", 8, 0x7FF0_0000_0000_0000),
    "F32": _Dtype("float32", 4, 0x7F80_0000),
    "F16": _Dtype("float16", 2, 0x7C00),
    "BF16": _Dtype("bfloat16", 2, 0x7F80),
    "I64": _Dtype("int64", 8),
    "I32": _Dtype("int32", 4),
    "I16": _Dtype("int16", 2),
    "I8": _Dtype("int8", 1),
    "U8": _Dtype("uint8", 1),
}
_BY_TORCH_NAME = {dtype.torch_name: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype (safetensors name: F32, BF16, ...) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return self.elements * _DTYPES[self.dtype].item_bytes

    @property
    def is_float(self) -> bool:
        """Whether the values are floating-point numbers."""
        return _DTYPES[self.dtype].exponent_mask != 0

    def to_json(self) -> JsonValue:
        """`{"dtype": ..., "shape": [...]}`."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_fields(cls, fields: Fields, what: str) -> "TensorSpec":
        """Reads `dtype` and `shape`, and refuses what this project does not handle."""
        dtype = fields.text("dtype", 16)
        if dtype not in _DTYPES:
            raise PeerError(f"{what}: expected a dtype of {', '.join(_DTYPES)}, found {dtype}")
        shape = fields.items("shape", _MAX_AXES)
        return cls(dtype, tuple(_axis(axis, what) for axis in shape))

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


Schema: TypeAlias = Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where a tensor lies: `[begin, end)` from the start of the file."""

    spec: TensorSpec
    begin: int
    end: int


def schema_to_json(schema: Schema) -> dict[str, JsonValue]:
    """A schema as a JSON object."""
    return {name: spec.to_json() for name, spec in schema.items()}


def schema_from_json(value: JsonValue, what: str) -> dict[str, TensorSpec]:
    """The schema in a JSON object; raises PeerError for anything else."""
    if not isinstance(value, Mapping) or len(value) > limits.TENSORS:
        raise PeerError(f"{what}: expected an object of at most {limits.TENSORS} tensors")
    found = {}
    for name, entry in value.items():
        _check_name(name, what)
        fields = Fields(entry, f"{what}: {name}")
        found[name] = TensorSpec.from_fields(fields, f"{what}: {name}")
        fields.close()
    return found


def spec_of(tensor: "torch.Tensor") -> TensorSpec:
    """Dtype and shape of a tensor."""
    torch_name = str(tensor.dtype).removeprefix("torch.")
    if torch_name not in _BY_TORCH_NAME:
        raise ConfigError(f"expected a dtype of {', '.join(_BY_TORCH_NAME)}, found {torch_name}")
    return TensorSpec(_BY_TORCH_NAME[torch_name], tuple(tensor.shape))


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes in a safetensors file, read without its tensors.

    Raises:
        PeerError: header too long or malformed, or the file is not exactly as long as it says.
    """
    with path.open("rb") as file:
        return {name: extent.spec for name, extent in _read_extents(file, path.name).items()}


def read_offsets(path: Path) -> dict[str, int]:
    """`read_header` for who reads a part of a tensor: the byte at which each one begins."""
    with path.open("rb") as file:
        return {name: extent.begin for name, extent in _read_extents(file, path.name).items()}


def check_schema(found: Schema, expected: Schema) -> None:
    """Raises IntegrityError that names the first missing, unexpected or misshapen tensor."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise IntegrityError(f"tensor {name}: expected {expected[name]}, found none")
        if name not in expected:
            raise IntegrityError(f"tensor {name}: expected none, found {found[name]}")
        if found[name] != expected[name]:
            raise IntegrityError(f"tensor {name}: expected {expected[name]}, found {found[name]}")


def check_finite(name: str, tensor: "torch.Tensor") -> None:
    """Raises IntegrityError when a value of the tensor is NaN or infinite."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise IntegrityError(f"tensor {name}: expected finite values, found NaN or infinity")


def check_file_finite(path: Path) -> None:
    """`check_finite` of every tensor in a file, reading 256 KiB at a time."""
    with path.open("rb") as file:
        for name, extent in _read_extents(file, path.name).items():
            mask = _DTYPES[extent.spec.dtype].exponent_mask
            if not mask:
                continue
            word = np.dtype(f"<u{_DTYPES[extent.spec.dtype].item_bytes}")
            for piece in _pieces(file, extent):
                words = np.frombuffer(piece, word)
                if np.any((words & word.type(mask)) == mask):
                    raise IntegrityError(
                        f"tensor {name}: expected finite values, found NaN or infinity"
                    )


def iter_checked(
    path: Path, expected: Schema, only: Container[str] | None = None
) -> "Iterator[tuple[str, torch.Tensor]]":
    """The tensors of a file one after the other, each checked, once the header equals `expected`.

    With `only`, the tensors of these names; the others are not read.

    Raises:
        PeerError: as `read_header`, `check_schema` and `check_finite` do.
    """
    with path.open("rb") as file:
        yield from _iter_tensors(file, path.name, expected, only)


class TensorFile:
    """A file from which tensors are read by name; a context manager. Raises as `iter_checked`."""

    def __init__(self, path: Path, expected: Schema) -> None:
        self._file = path.open("rb")
        try:
            self._extents = _read_extents(self._file, path.name)
            found = {name: extent.spec for name, extent in self._extents.items()}
            check_schema(found, expected)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, name: str) -> "torch.Tensor":
        """The tensor of that name, finite."""
        tensor = _read_tensor(self._file, self._extents[name])
        check_finite(name, tensor)
        return tensor


def load_checked(path: Path, expected: Schema) -> "dict[str, torch.Tensor]":
    """All tensors of a file that must hold exactly `expected`, all values finite."""
    return dict(iter_checked(path, expected))


def tensors_from_bytes(data: bytes, expected: Schema) -> "dict[str, torch.Tensor]":
    """As `load_checked`, from bytes."""
    return dict(_iter_tensors(io.BytesIO(data), "tensors", expected))


def tensors_to_bytes(tensors: "Mapping[str, torch.Tensor]") -> bytes:
    """The safetensors encoding of tensors; equal tensors give equal bytes."""
    return b"".join(tensors_to_parts(tensors))


def tensors_to_parts(tensors: "Mapping[str, torch.Tensor]") -> Iterator[bytes | memoryview]:
    """The parts of `tensors_to_bytes`, one after the other, for a file."""
    schema = {name: spec_of(tensor) for name, tensor in tensors.items()}
    yield encode_header(schema)
    for name in storage_order(schema):
        yield tensor_bytes(tensors[name])


def storage_order(schema: Schema) -> list[str]:
    """Names in the order of their bytes in a file: widest items first, so all are aligned."""
    return sorted(schema, key=lambda name: (-_DTYPES[schema[name].dtype].item_bytes, name))


def encode_header(schema: Schema) -> bytes:
    """What stands before the bytes of the tensors: length, JSON, padding to eight bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in storage_order(schema):
        spec = schema[name]
        end = offset + spec.num_bytes
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """The bytes of a tensor, little-endian, row-major; copied only where its layout needs it."""
    import torch

    flat = tensor.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _iter_tensors(
    file: BinaryIO, what: str, expected: Schema, only: Container[str] | None = None
) -> "Iterator[tuple[str, torch.Tensor]]":
    extents = _read_extents(file, what)
    check_schema({name: extent.spec for name, extent in extents.items()}, expected)
    for name, extent in extents.items():
        if only is not None and name not in only:
            continue
        tensor = _read_tensor(file, extent)
        check_finite(name, tensor)
        yield name, tensor


def _read_tensor(file: BinaryIO, extent: _Extent) -> "torch.Tensor":
    import torch

    dtype = getattr(torch, _DTYPES[extent.spec.dtype].torch_name)
    tensor = torch.empty(extent.spec.shape, dtype=dtype)
    view = tensor_bytes(tensor)  # shares the memory of a new tensor
    file.seek(extent.begin)
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]  # every raw file has it
        if not count:
            raise IntegrityError("expected a whole tensor, the file ended before")
        filled += count
    return tensor


def _pieces(file: BinaryIO, extent: _Extent) -> Iterator[bytes]:
    """The bytes of a tensor in whole items; a chunk is a multiple of every item size."""
    file.seek(extent.begin)
    left = extent.end - extent.begin
    while left:
        piece = file.read(min(left, limits.CHUNK_BYTES))
        if len(piece) != min(left, limits.CHUNK_BYTES):
            raise IntegrityError("expected a whole tensor, the file ended before")
        left -= len(piece)
        yield piece


def _read_extents(file: BinaryIO, what: str) -> dict[str, _Extent]:
    """The header, validated: its tensors tile the rest of the file exactly."""
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    header_bytes = int.from_bytes(file.read(8), "little")
    limit = min(limits.SAFETENSORS_HEADER_BYTES, file_bytes - 8)
    if not 2 <= header_bytes <= limit:
        raise PeerError(f"{what}: expected a header of 2 to {limit} bytes, found {header_bytes}")
    header = parse_json(file.read(header_bytes), f"{what}: header", header_bytes)
    if not isinstance(header, dict) or len(header) > limits.TENSORS + 1:
        raise PeerError(f"{what}: expected a header of at most {limits.TENSORS} tensors")
    _check_metadata(header.pop("__metadata__", {}), what)
    start = 8 + header_bytes
    extents = {name: _extent(name, entry, start, what) for name, entry in header.items()}
    _check_tiling(extents, start, file_bytes, what)
    return extents


def _extent(name: str, entry: JsonValue, start: int, what: str) -> _Extent:
    _check_name(name, what)
    where = f"{what}: {name}"
    fields = Fields(entry, where)
    spec = TensorSpec.from_fields(fields, where)
    offsets = fields.items("data_offsets", 2)
    fields.close()
    if len(offsets) != 2:
        raise PeerError(f"{where}: expected two data_offsets, found {len(offsets)}")
    begin, end = (_axis(offset, where) for offset in offsets)
    if end - begin != spec.num_bytes:
        raise PeerError(
            f"{where}: {spec} has {spec.num_bytes} bytes, its offsets say {end - begin}"
        )
    return _Extent(spec, start + begin, start + end)


def _check_tiling(extents: Mapping[str, _Extent], start: int, file_bytes: int, what: str) -> None:
    for extent in sorted(extents.values(), key=lambda extent: (extent.begin, extent.end)):
        if extent.begin != start:
            raise PeerError(f"{what}: expected a tensor at byte {start}, found {extent.begin}")
        start = extent.end
    if start != file_bytes:
        raise PeerError(f"{what}: expected {start} bytes, found {file_bytes}")


def _check_metadata(metadata: JsonValue, what: str) -> None:
    """Nothing is read from it; it is bounded with the header."""
    if not isinstance(metadata, Mapping) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise PeerError(f"{what}: expected metadata of strings")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise PeerError(f"{what}: expected a tensor name, found {name[:64]!a}")


def _axis(value: JsonValue, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_AXIS:
        raise PeerError(f"{what}: expected sizes from 0 to {_MAX_AXIS}, found {value!a:.64}")
    return value
