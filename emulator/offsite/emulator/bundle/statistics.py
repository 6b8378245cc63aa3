"""Figures of every tensor of a release, read piece by piece: what the inspection judges by.

Notable:
- never more than a few MiB of a file are in memory;
- the work is bounded: of a file with more than `VALUES` values, a part of the rows of every tensor
  is read, the same share of each, at least `MIN_ROWS`. Which rows is drawn by the edge from a
  seed of its own, so whoever made the release cannot know where nobody looks; the seed and the
  share are part of the result. Everything at or below that size is read whole;
- which block a tensor belongs to follows from the names alone: the numbered list that holds most
  of the values is the list of blocks. Nothing of the release is instantiated.

A matrix is seen as rows of its last axis. RMS is the root of the mean square; the peak is the
largest absolute value over the RMS; the kurtosis of a normal distribution is 3.
"""

import math
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offsite.emulator.bundle.row_reader import Matrix, Numbers, RowReader, matrix_shape
from offsite.emulator.bundle.similarity import MAX_WIDTH, SAMPLE, Similarity, compare_rows
from offsite.emulator.bundle.tensor_schema import BundleSchema
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import Schema, TensorSpec

VALUES = 1 << 30
"""Values that are read at most, but for the least rows of each tensor: about ten seconds."""
MIN_ROWS = 256
MAX_ROWS = 1 << 20
MAX_COLUMNS = 1 << 22
"""A row longer than this is not measured; no model of today has one."""
_PIECE_VALUES = 1 << 20
_SAFE = (1e-7, 1e7)  # between these, fourth powers and their sums stay within float32
_NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)")
HARMONISERS = "harmonisers"

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which rows are read: drawn from `seed`, as many as `values` allows; 0 reads every row."""

    seed: int
    values: int = VALUES

    def rows_of(self, spec: TensorSpec, name: str, total: int) -> Numbers:
        """Row numbers, ascending: one at a random place in each of equally long stretches."""
        rows, _ = matrix_shape(spec)
        wanted = rows
        if 0 < self.values < total:
            wanted = min(rows, MAX_ROWS, max(MIN_ROWS, round(rows * self.values / total)))
        return spread_draw(self.source(name), rows, wanted)

    def source(self, name: str) -> np.random.Generator:
        """The random source of one tensor."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """The figures of one tensor."""

    name: str
    block: int | None  # position in the emulator; None outside the blocks
    kind: str  # the path inside the block; outside, the name
    spec: TensorSpec
    rows_read: int
    rms: float
    largest: float  # absolute value
    zeros: float  # share of the values
    kurtosis: float
    row_norms: Vector
    column_norms: Vector  # over the rows that were read
    repeated: int  # rows that stand there more than once, exactly
    vector: Matrix | None  # the values themselves, where there is one axis
    row_similarity: Similarity | None
    column_similarity: Similarity | None

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns."""
        return len(self.spec.shape) > 1

    @property
    def norm(self) -> float:
        """Euclidean norm of all values, estimated where rows were drawn."""
        return self.rms * math.sqrt(self.spec.elements)

    @property
    def peak(self) -> float:
        """Largest absolute value over the RMS; 0 for zeros."""
        return self.largest / self.rms if self.rms else 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Every tensor's figures, how they were taken, and what could not be measured."""

    tensors: tuple[TensorStatistics, ...]
    sampling: Sampling
    values: int
    values_read: int
    unmeasured: tuple[str, ...]

    def kinds(self) -> dict[str, list[TensorStatistics]]:
        """The tensors inside blocks by their kind, ascending by block."""
        found: dict[str, list[TensorStatistics]] = {}
        for tensor in self.tensors:
            if tensor.block is not None:
                found.setdefault(tensor.kind, []).append(tensor)
        return {kind: sorted(group, key=_position) for kind, group in found.items()}

    def outside(self) -> list[TensorStatistics]:
        """The tensors outside the blocks."""
        return [tensor for tensor in self.tensors if tensor.block is None]


def measure(
    path: Path, schema: BundleSchema, sampling: Sampling, report: Report = silent
) -> Statistics:
    """The figures of the floating-point tensors in a verified emulator's file; reports values."""
    places = Places.of(schema.emulator)
    total = sum(spec.elements for spec in schema.emulator.values() if spec.is_float)
    done, found, unmeasured = 0, [], []
    with RowReader(path, schema) as reader:
        for name, spec in schema.emulator.items():
            count, columns = matrix_shape(spec)
            if not spec.is_float or not count or columns > MAX_COLUMNS:
                unmeasured.append(name)
                continue
            rows = sampling.rows_of(spec, name, total)
            tally = _Tally(spec, len(rows), sampling.source(f"{name}/compared"))
            step = max(1, _PIECE_VALUES // columns)
            for start in range(0, len(rows), step):
                piece = reader.read(name, rows[start : start + step])
                tally.add(piece)
                done += piece.size
                report(done, total)
            found.append(tally.finish(name, places.of_tensor(name)))
    report(total, total)
    return Statistics(tuple(found), sampling, total, done, tuple(unmeasured))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the blocks stand in the names of a release's tensors."""

    blocks_path: str

    @classmethod
    def of(cls, schema: Schema) -> "Places":
        """The numbered list that holds most values, harmonisers aside."""
        held: Counter[str] = Counter()
        for name, spec in schema.items():
            match = _NUMBERED.fullmatch(name)
            if match and match[1] != HARMONISERS:
                held[match[1]] += spec.elements
        return cls(max(held, key=lambda path: (held[path], path)) if held else "")

    def of_tensor(self, name: str) -> tuple[int | None, str]:
        """(block position, path inside the block), or (None, name)."""
        match = _NUMBERED.fullmatch(name)
        if match and match[1] == self.blocks_path and len(match[2]) < 9:
            return int(match[2]), match[3]
        return None, name


def spread_draw(source: np.random.Generator, count: int, wanted: int) -> Numbers:
    """`wanted` numbers below `count`, ascending, one from each of equally long stretches."""
    if wanted >= count or wanted == 0:
        return np.arange(min(count, wanted))
    edges = np.arange(wanted + 1) * count // wanted
    return edges[:-1] + source.integers(0, np.diff(edges))


def _position(tensor: TensorStatistics) -> int:
    return -1 if tensor.block is None else tensor.block


class _Tally:
    """Sums over the pieces of one tensor; pieces are whole rows."""

    def __init__(self, spec: TensorSpec, rows: int, source: np.random.Generator) -> None:
        self._spec, self._rows, self._source = spec, rows, source
        self._columns = matrix_shape(spec)[1]
        self._largest = self._fourth = 0.0
        self._zeros = 0
        self._row_squares: list[Vector] = []
        self._row_sums: list[Vector] = []
        self._column_squares = np.zeros(self._columns)
        compared = min(SAMPLE, rows) if len(spec.shape) > 1 else 0
        self._compared_rows = spread_draw(source, rows, compared)
        self._compared_columns = spread_draw(source, self._columns, MAX_WIDTH)
        self._compared: list[Matrix] = []
        self._first_row: Matrix | None = None
        self._seen = 0

    def add(self, piece: Matrix) -> None:
        largest = max(float(piece.max()), -float(piece.min()))
        self._largest = max(self._largest, largest)
        self._zeros += piece.size - int(np.count_nonzero(piece))
        self._first_row = piece[0] if self._seen == 0 else self._first_row
        self._keep(piece)
        values = piece if _SAFE[0] < largest < _SAFE[1] else piece.astype(np.float64)
        squares = values * values
        self._row_sums.append(values.sum(axis=1).astype(np.float64))
        self._row_squares.append(squares.sum(axis=1).astype(np.float64))
        self._column_squares += squares.sum(axis=0)
        self._fourth += float(np.vdot(squares, squares))

    def _keep(self, piece: Matrix) -> None:
        """Copies of the rows that are compared with one another."""
        first, last = np.searchsorted(self._compared_rows, (self._seen, self._seen + len(piece)))
        rows = self._compared_rows[first:last] - self._seen
        self._compared.append(piece[np.ix_(rows, self._compared_columns)])
        self._seen += len(piece)

    def finish(self, name: str, place: tuple[int | None, str]) -> TensorStatistics:
        row_squares, row_sums = np.concatenate(self._row_squares), np.concatenate(self._row_sums)
        count = self._rows * self._columns
        mean_square = float(row_squares.sum()) / count
        rows = np.concatenate(self._compared)
        some = spread_draw(self._source, rows.shape[1], SAMPLE)
        return TensorStatistics(
            name=name,
            block=place[0],
            kind=place[1],
            spec=self._spec,
            rows_read=self._rows,
            rms=mean_square**0.5,
            largest=self._largest,
            zeros=self._zeros / count,
            kurtosis=self._fourth / count / mean_square**2 if mean_square**2 else 0.0,
            row_norms=np.sqrt(row_squares),
            column_norms=np.sqrt(self._column_squares),
            repeated=_repeated(row_sums, row_squares),
            vector=None if len(self._spec.shape) > 1 else self._first_row,
            row_similarity=compare_rows(rows),
            column_similarity=compare_rows(rows[:, some].T),
        )


def _repeated(sums: Vector, squares: Vector) -> int:
    """How many rows, zeros aside, have an equal one: told by two sums over each."""
    keys = np.stack([sums, squares])[:, squares > 0]
    counts = np.unique(keys, axis=1, return_counts=True)[1]
    return int(counts[counts > 1].sum())
