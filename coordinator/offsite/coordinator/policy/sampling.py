"""Who of the clients that are there is asked in an attempt: drawn by the attempt's seed.

The clients stand in the order of SHA-256(beacon, id), with a beacon of its own that follows from the
plan's seed, and the first ones are asked.

Nobody's privacy rests on this draw. The owner chooses the seed, so an edge cannot tell a fair draw
from a chosen one, and a private edge accounts for every round that it takes part in as if it
had been certain to (no amplification by this sampling). An edge counts how often it was asked:
`edge-client status`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """How many are asked."""

    share: float = 1.0
    """Of those who are there, rounded up."""
    most: int = 0
    """0: any number."""

    def size(self, there: int, least: int) -> int:
        """Of `there` clients, `least` of which are needed whatever the share says."""
        wanted = math.ceil(self.share * there - 1e-9)  # 0.1 * 30 is a little more than 3
        if self.most:
            wanted = min(wanted, self.most)
        return min(max(wanted, least), there)


def sampled(names: Sequence[str], sample: Sample, least: int, seed: int) -> list[str]:
    """Those of `names` who are asked, sorted; the same for the same clients and seed."""
    beacon = hashlib.sha256(f"offsite/sample/1/{seed}".encode()).digest()
    ordered = sorted(names, key=lambda name: hashlib.sha256(beacon + name.encode()).digest())
    return sorted(ordered[: sample.size(len(ordered), least)])
