"""Single rows of the emulator's tensors, out of its file, unpacked: float32 and little memory.

A matrix is seen as rows of its last axis; a vector is one row. A packed tensor gives the values that
an edge tunes on. Values beyond float32 come as its largest.

Notable: rows are read where they lie, a few MiB at a time by the caller's choice, and torch is not
imported unless something is packed as NF4.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from offsite.emulator.bundle.tensor_schema import BundleSchema
from offsite.emulator.packing.packing import MAX_SCALE, NF4_BLOCK, SCALE, Packing
from offsite.emulator.schema import TensorSpec, check_schema, read_header, read_offsets
from offsite.secure.errors import IntegrityError

Matrix = NDArray[np.float32]
Numbers = NDArray[np.int64]


def matrix_shape(spec: TensorSpec) -> tuple[int, int]:
    """(rows, columns) of a tensor; a vector is one row."""
    columns = spec.shape[-1] if spec.shape else 1
    return (spec.elements // columns if columns else 0), columns


class RowReader:
    """Rows of the tensors in an emulator's file, by name and number; a context manager."""

    def __init__(self, path: Path, schema: BundleSchema) -> None:
        check_schema(read_header(path), schema.stored_emulator)
        self._schema, self._stored = schema, schema.stored_emulator
        self._offsets = read_offsets(path)
        self._file = path.open("rb")
        self._scale: tuple[str, Matrix] = ("", np.empty(0, np.float32))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, name: str, rows: Numbers) -> Matrix:
        """The rows of these numbers, ascending, as (rows, columns)."""
        if name not in self._schema.packed:
            return self._plain(name, rows)
        if self._schema.packing is Packing.INT8:
            return self._int8(name, rows)
        return self._nf4(name, rows)

    def _plain(self, name: str, rows: Numbers) -> Matrix:
        _, columns = matrix_shape(self._stored[name])
        parts = [self._values(name, first * columns, last * columns) for first, last in _runs(rows)]
        return np.concatenate(parts).reshape(-1, columns)

    def _int8(self, name: str, rows: Numbers) -> Matrix:
        """A byte times its scale; scales are shared along one axis."""
        shape, axis = self._schema.emulator[name].shape, self._schema.packed[name]
        place = list(np.unravel_index(rows, shape[:-1]))
        if axis < len(shape) - 1:
            place[axis] = np.zeros_like(rows)
        scale = self.scales(name).reshape(self._stored[f"{name}.{SCALE}"].shape)
        return self._plain(f"{name}.int8", rows) * scale[tuple(place)]

    def _nf4(self, name: str, rows: Numbers) -> Matrix:
        """Two code points a byte, in one line over all rows; a scale for each 64 values."""
        from offsite.emulator.packing.nf4 import CODE

        code, scale = np.array(CODE, np.float32), self.scales(name)
        _, columns = matrix_shape(self._schema.emulator[name])
        parts = []
        for first, last in _runs(rows):
            begin, end = first * columns, last * columns
            pairs = self._bytes(f"{name}.nf4", begin // 2, (end + 1) // 2)
            halves = np.stack([pairs >> 4, pairs & 0xF], axis=1).reshape(-1)
            values = code[halves[begin % 2 :][: end - begin]]
            parts.append(values * scale[np.arange(begin, end) // NF4_BLOCK])
        return np.concatenate(parts).reshape(-1, columns)

    def scales(self, name: str) -> Matrix:
        """All scales of a packed tensor; those of the last one are kept."""
        if self._scale[0] != name:
            stored = f"{name}.{SCALE}"
            self._scale = (name, self._values(stored, 0, self._stored[stored].elements))
        return self._scale[1]

    def _bytes(self, name: str, begin: int, end: int) -> NDArray[np.uint8]:
        offset, count = self._offsets[name] + begin, end - begin
        data = os.pread(self._file.fileno(), count, offset)
        if len(data) != count:
            raise IntegrityError(f"tensor {name}: expected a whole tensor, the file ended before")
        return np.frombuffer(data, np.uint8)

    def _values(self, name: str, begin: int, end: int) -> Matrix:
        """Elements `[begin, end)` of a stored tensor."""
        spec = self._stored[name]
        width = spec.num_bytes // spec.elements
        return _floats(self._bytes(name, begin * width, end * width), spec.dtype)


def check_scales(path: Path, schema: BundleSchema) -> None:
    """Refuses scales of packed tensors that would make no weights.

    Raises:
        IntegrityError: one is negative, not finite or absurd.
    """
    with RowReader(path, schema) as reader:
        for name in schema.packed:
            scales = reader.scales(name)
            if not bool(((scales >= 0) & (scales <= MAX_SCALE)).all()):  # NaN is neither
                raise IntegrityError(
                    f"tensor {name}: expected scales from 0 to {MAX_SCALE:g}, found another"
                )


def _runs(rows: Numbers) -> Iterator[tuple[int, int]]:
    """Stretches `[first, last)` of rows that lie side by side."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        yield int(run[0]), int(run[-1]) + 1


def _floats(data: NDArray[np.uint8], dtype: str) -> Matrix:
    values: Matrix
    match dtype:
        case "BF16":
            values = (data.view("<u2").astype("<u4") << 16).view("<f4")
        case "F64":
            bound = float(np.finfo(np.float32).max)
            values = np.clip(data.view("<f8"), -bound, bound).astype(np.float32)
        case "F16":
            values = data.view("<f2").astype(np.float32)
        case "I8":
            values = data.view("i1").astype(np.float32)
        case _:
            values = data.view("<f4")
    return values
