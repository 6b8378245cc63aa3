"""`coordinator simulate`: a campaign with many clients on this machine, before real ones are asked.

The work is that of both roles, so it lies above them, in `offsite.simulation`; this module is the one
place below that knows of it (docs/adr/0008).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offsite.emulator.terminal import Terminal


@dataclass(frozen=True, slots=True)
class SimulateFlags:
    """What the command line said."""

    data: Path
    clients: int = 100
    partition: str = "iid"
    alpha: float = 0.3
    by: str = "label"
    sample: int = 0
    rounds: int = 0
    strategies: str = ""
    dropout: float = 0.0
    stragglers: float = 0.0
    step_s: float = 0.0
    epsilon: float | None = None
    delta: float = 1e-5
    sums: str = "secure"
    lora: str = ""
    ranks: str = ""
    stack: str = "1"
    seed: int = 0
    out: Path | None = None
    plot: Path | None = None


def simulate_campaigns(
    root: Path, overrides: Sequence[str], flags: SimulateFlags, terminal: Terminal
) -> None:
    """Runs one simulated campaign for each strategy, and shows how they compare."""
    from offsite.simulation.command import simulate

    simulate(root, overrides, flags, terminal)
