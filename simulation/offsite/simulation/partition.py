"""Who has which rows: a data set divided among simulated clients.

    iid         shuffled, then dealt out one by one
    dirichlet   each client draws the mix of its groups, q ~ Dir(alpha · K · p), where p are the
                groups' shares of the data and K is their number; then its rows, each once
                (Hsu et al., arXiv 1909.06335, section 3)

Notable decisions:

- The paper writes Dir(alpha · p); here alpha is counted per group, as Flower's partitioner counts:
  with groups of equal size an alpha of 0.3 is Dir(0.3, ..., 0.3). The smaller, the more one-sided.
- Every row goes to exactly one client, and sizes differ by one at most. So towards the end a group
  may be used up: then a client draws from what is left, in the proportions of its own mix.
- Clients draw in turns, one row each, in an order drawn anew for every turn. Were they served one
  after the other, the last ones would get what nobody wanted, and be the odd ones by their number.

No files, no model: labels in, places out; the same for the same seed.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError

Parts = tuple[tuple[int, ...], ...]
"""For each client the places of its rows, ascending."""


class PartitionKind(StrEnum):
    """How rows are divided."""

    IID = "iid"
    DIRICHLET = "dirichlet"


def iid(rows: int, clients: int, seed: int) -> Parts:
    """Raises ConfigError for fewer rows than clients."""
    _check(rows, clients)
    order = np.random.default_rng(seed).permutation(rows)
    return tuple(tuple(sorted(map(int, order[client::clients]))) for client in range(clients))


def dirichlet(groups: Sequence[Hashable], clients: int, alpha: float, seed: int) -> Parts:
    """Divides by groups.

    Args:
        groups: what each row is, one for each row.
        alpha: above 0.

    Raises:
        ConfigError: fewer rows than clients, or alpha is not above 0.
    """
    _check(len(groups), clients)
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"--alpha: expected a finite number above 0, found {alpha}")
    random = np.random.default_rng(seed)
    names = sorted(set(groups), key=repr)
    places = [[row for row, group in enumerate(groups) if group == name] for name in names]
    left = [list(map(int, random.permutation(rows))) for rows in places]
    share = np.array([len(rows) for rows in left]) / len(groups)
    mixes = random.dirichlet(alpha * len(names) * share, clients)  # (clients, K)
    parts: list[list[int]] = [[] for _ in range(clients)]
    while any(left):
        there = sum(map(len, left))
        for client in map(int, random.permutation(clients)[:there]):
            parts[client].append(left[_drawn(random, mixes[client], left)].pop())
    return tuple(tuple(sorted(part)) for part in parts)


def _drawn(
    random: np.random.Generator, mix: NDArray[np.float64], left: Sequence[Sequence[int]]
) -> int:
    """The group of a client's next row, of those that are not used up."""
    counts = np.array([len(rows) for rows in left], np.float64)
    wanted = mix * (counts > 0)
    if not wanted.sum() > 0:  # nothing is left of what this client has at all
        wanted = counts
    return int(random.choice(len(left), p=wanted / wanted.sum()))


def _check(rows: int, clients: int) -> None:
    if not 1 <= clients <= rows:
        raise ConfigError(
            f"--clients: expected 1 to {rows}, one row for each at least, found {clients}"
        )
