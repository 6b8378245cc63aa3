"""The published formula of every strategy, in NumPy and fp64, on whole vectors.

Written from the papers; nothing of the product or of Flower is called. A round is described by the
means' changes (n, d), their weights (n,) and what was remembered.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from offsite.coordinator.config_strategy import StrategyName, StrategySection

Vector = NDArray[np.float64]


@dataclass
class Memory:
    """What the formulas carry from round to round."""

    round: int = 0
    vectors: dict[str, Vector] = field(default_factory=dict)

    def of(self, name: str, like: Vector) -> Vector:
        return self.vectors.get(name, np.zeros_like(like))


def step(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    """What a round adds to the adapter; the memory moves on."""
    memory.round += 1
    return FORMULAS[section.name](section, changes, weights, memory)


def _mean(changes: Vector, weights: Vector) -> Vector:
    return sum(w * c for w, c in zip(weights, changes, strict=True)) / weights.sum()


def _fedavg(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    """McMahan et al., arXiv 1602.05629, algorithm 1. FedProx changes the clients alone."""
    return _mean(changes, weights)


def _fedavgm(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    """Hsu et al., arXiv 1909.06335, section 4.3: v = b·v + change, w = w + rate·v."""
    change = _mean(changes, weights)
    memory.vectors["v"] = section.server_momentum * memory.of("v", change) + change
    rate = 1.0 if section.server_learning_rate is None else section.server_learning_rate
    return rate * memory.vectors["v"]


def _adaptive(section: StrategySection, change: Vector, memory: Memory, second: Vector) -> Vector:
    """Reddi et al., arXiv 2003.00295, algorithm 2, the lines that Adam and Yogi share."""
    first = section.beta_1 * memory.of("m", change) + (1 - section.beta_1) * change
    memory.vectors.update(m=first, v=second)
    return first / (np.sqrt(second) + section.tau)


def _fedadam(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    """With the bias correction of Kingma and Ba, arXiv 1412.6980, from the second step on."""
    change = _mean(changes, weights)
    b1, b2 = section.beta_1, section.beta_2
    second = b2 * memory.of("v", change) + (1 - b2) * change**2
    power = memory.round + 1
    rate = 1e-3 * np.sqrt(1 - b2**power) / (1 - b1**power)
    return rate * _adaptive(section, change, memory, second)


def _fedyogi(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    change = _mean(changes, weights)
    old, square = memory.of("v", change), change**2
    second = old - (1 - section.beta_2) * square * np.sign(old - square)
    return 1e-3 * _adaptive(section, change, memory, second)


def _fedmedian(
    section: StrategySection, changes: Vector, weights: Vector, memory: Memory
) -> Vector:
    """Yin et al., arXiv 1803.01498, definition 1: the middle of each value, or of the two middles."""
    ordered, count = np.sort(changes, axis=0), len(changes)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _fedtrimmedavg(
    section: StrategySection, changes: Vector, weights: Vector, memory: Memory
) -> Vector:
    """Definition 2: a share cut off at either end of each value, the mean of the rest."""
    ordered, count = np.sort(changes, axis=0), len(changes)
    cut = int(np.floor(section.trim_share * count))
    return ordered[cut : count - cut].sum(0) / (count - 2 * cut)


def _scores(vectors: list[Vector], hostile: int) -> list[float]:
    """Blanchard et al., NeurIPS 2017, section 4: to the n - f - 2 closest, squared and added.

    The closest are found as the subset whose sum is least.
    """
    count = len(vectors)
    closest = max(1, count - hostile - 2)
    found = []
    for i, one in enumerate(vectors):
        far = [float(((one - other) ** 2).sum()) for j, other in enumerate(vectors) if j != i]
        found.append(
            min((sum(few) for few in combinations(far, min(closest, len(far)))), default=0)
        )
    return found


def _krum(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    return changes[int(np.argmin(_scores(list(changes), section.hostile_cohorts)))]


def _multikrum(
    section: StrategySection, changes: Vector, weights: Vector, memory: Memory
) -> Vector:
    chosen = section.chosen_cohorts or len(changes) - section.hostile_cohorts - 2
    order = np.argsort(_scores(list(changes), section.hostile_cohorts))
    return changes[order[:chosen]].mean(0)


def _bulyan(section: StrategySection, changes: Vector, weights: Vector, memory: Memory) -> Vector:
    """El Mhamdi et al., arXiv 1802.07927, section 4: Krum n - 2f times, then near the median."""
    hostile, left, selected = section.hostile_cohorts, list(changes), []
    theta = len(changes) - 2 * hostile
    while len(selected) < theta:
        selected.append(left.pop(int(np.argmin(_scores(left, hostile)))))
    result, values = np.empty(changes.shape[1]), np.stack(selected)
    for place, column in enumerate(values.T):
        by_distance = sorted(column, key=lambda value: abs(value - np.median(column)))
        result[place] = np.mean(by_distance[: theta - 2 * hostile])
    return result


FORMULAS: dict[StrategyName, Callable[[StrategySection, Vector, Vector, Memory], Vector]] = {
    StrategyName.FEDAVG: _fedavg,
    StrategyName.FEDAVGM: _fedavgm,
    StrategyName.FEDPROX: _fedavg,
    StrategyName.FEDADAM: _fedadam,
    StrategyName.FEDYOGI: _fedyogi,
    StrategyName.FEDMEDIAN: _fedmedian,
    StrategyName.FEDTRIMMEDAVG: _fedtrimmedavg,
    StrategyName.KRUM: _krum,
    StrategyName.MULTIKRUM: _multikrum,
    StrategyName.BULYAN: _bulyan,
}
