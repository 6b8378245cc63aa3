"""Krum, asked again and again: the first step of Bulyan as its paper has it.

    score(i) = sum of |x_i - x_j|² over the n - f - 2 vectors x_j that are closest to x_i

The vector with the least score is chosen and taken away, then the scores of those that are left are
computed among themselves. Where fewer than one neighbour would count, one does.

Source: El Mhamdi et al., arXiv 1802.07927, section 4; Krum: Blanchard et al., NeurIPS 2017.
"""

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray


def select_one_after_another(
    contents: list[RecordDict], hostile: int, wanted: int
) -> list[RecordDict]:
    """A selection rule for Flower's Bulyan: `wanted` of the contents, in the order of the choice."""
    distances = squared_distances([_flat(content) for content in contents])
    left = list(range(len(contents)))
    chosen: list[int] = []
    while len(chosen) < wanted:
        scores = krum_scores(distances[np.ix_(left, left)], hostile)
        chosen.append(left.pop(int(np.argmin(scores))))
    return [contents[place] for place in chosen]


def krum_scores(distances: NDArray[np.float64], hostile: int) -> NDArray[np.float64]:
    """The scores (n,) of vectors with these squared distances (n, n)."""
    count = len(distances)
    neighbours = max(1, count - hostile - 2)
    others = np.sort(distances + np.diag(np.full(count, np.inf)), axis=1)[:, : count - 1]
    scores: NDArray[np.float64] = others[:, :neighbours].sum(axis=1)
    return scores


def squared_distances(vectors: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(n, n), from differences: the short cut through norms loses the digits that count."""
    found = np.zeros((len(vectors), len(vectors)))
    for row, one in enumerate(vectors):
        for column, other in enumerate(vectors[:row]):
            difference = (one - other).astype(np.float64)
            found[row, column] = found[column, row] = difference @ difference
    return found


def _flat(content: RecordDict) -> NDArray[np.float32]:
    (arrays,) = content.array_records.values()
    return np.concatenate(arrays.to_numpy_ndarrays(), axis=None).ravel()
