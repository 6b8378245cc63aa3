"""How alike the rows of a matrix are: the mark of layers that are built to copy data.

Honest rows point in many directions. A layer made to take data apart has many rows that are one
direction, scaled or shifted a little each ("imprint" layers: arXiv 2110.13057, section 3; for
transformers arXiv 2201.12675, section 4.1): they are copies of one another, and they lie in the
plane of that direction and of the one that carries the shift.

Notable: at most `SAMPLE` rows are compared, each with all others, by the cosine of their angle in
at most `MAX_WIDTH` columns; the sign does not count. Rows of zeros are left out. Which rows and
columns is the caller's choice, and should not be foreseeable.
"""

from dataclasses import dataclass

import numpy as np

from offsite.emulator.bundle.row_reader import Matrix

SAMPLE = 512
"""Rows that are compared; 512 x 512 cosines cost some milliseconds."""
MAX_WIDTH = 2048
COPY_COSINE = 0.995
NEAR_COSINE = 0.9
MIN_SIDE = 16
"""In fewer dimensions, and among fewer rows, random rows look alike: nothing is said there."""
_DIRECTIONS = 2
_ITERATIONS = 8


@dataclass(frozen=True, slots=True)
class Similarity:
    """Of `compared` rows: how many have a copy, a near copy, and how much lies in one plane."""

    compared: int
    copies: int
    near: int
    plane: float  # share of the unit rows' squared length along their two main directions

    @property
    def copied_share(self) -> float:
        """Share of the rows that have a copy."""
        return self.copies / self.compared

    @property
    def near_share(self) -> float:
        """Share of the rows that have a near copy."""
        return self.near / self.compared


def compare_rows(rows: Matrix) -> Similarity | None:
    """The similarity of up to `SAMPLE` rows; None where they are too few or too short."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    rows = (rows[largest > 0] / largest[largest > 0, None])[:SAMPLE]  # no square overflows
    if min(rows.shape) < MIN_SIDE:
        return None
    units = rows / np.linalg.norm(rows, axis=1)[:, None]
    cosines = units @ units.T
    plane = _plane_share(cosines)
    np.fill_diagonal(cosines, 0.0)
    nearest = np.abs(cosines).max(axis=1)
    return Similarity(
        compared=len(rows),
        copies=int(np.count_nonzero(nearest > COPY_COSINE)),
        near=int(np.count_nonzero(nearest > NEAR_COSINE)),
        plane=plane,
    )


def _plane_share(gram: Matrix) -> float:
    """Share of the two largest eigenvalues, by subspace iteration from a fixed start."""
    start = np.random.default_rng(0).standard_normal((len(gram), _DIRECTIONS + 2))
    basis = np.linalg.qr(start.astype(np.float32))[0]
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(gram @ basis)[0]
    values = np.linalg.eigvalsh(basis.T @ gram @ basis)
    return min(1.0, float(values[-_DIRECTIONS:].sum() / np.trace(gram)))
