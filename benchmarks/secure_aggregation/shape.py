"""What is summed: how many clients, how long their vectors are, how many drop out."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DROPOUT_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Shape:
    """n clients with d values each."""

    clients: int
    values: int

    @property
    def dropouts(self) -> int:
        """Clients that vanish between sharing and upload."""
        return math.floor(DROPOUT_SHARE * self.clients)


def updates(shape: Shape, name: str) -> NDArray[np.float32]:
    """The update of one client, (d,): the same values whenever it is asked for."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape.values).astype(np.float32)
