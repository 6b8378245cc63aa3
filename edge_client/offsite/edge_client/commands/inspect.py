"""`edge-client inspect`: what a release holds, who signed it, and what speaks against it.

The rows that are measured of a large release are drawn from a seed that is new each time, so that
whoever made it cannot know where nobody looks; `--seed` repeats an inspection. As a fetch would, it
refuses a release that is older than the one this edge accepted, or of another base model.
"""

import secrets
import time
from pathlib import Path

from offsite.edge_client.fetch import accepted_facts
from offsite.edge_client.state import EdgeState
from offsite.emulator.bundle import report
from offsite.emulator.bundle.statistics import VALUES, Sampling
from offsite.emulator.durable import machine_errors
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError

SEED_BITS = 32
EVERY_VALUE = 0


def inspect_bundle(
    bundle: Path,
    root: Path,
    terminal: Terminal,
    *,
    every_row: bool = False,
    seed: int | None = None,
) -> None:
    """Shows the bundle, refused or not.

    Raises:
        PeerError: it is refused; shown nevertheless.
        ConfigError: there is no such folder, or this edge has not joined.
    """
    if not bundle.is_dir():
        raise ConfigError(f"{bundle}: no such folder; a fetched release lies in STATE/bundle")
    if not root.is_dir():
        raise ConfigError(
            f"{root}: no such folder; --state names the edge whose coordinator signed the release"
        )
    with EdgeState.open(root, exclusive=False) as state:
        signer = state.directory(time.time()).coordinator().identity_key
        with machine_errors(state.bundle):
            accepted = accepted_facts(signer, state.bundle)
    with terminal.progress("checking") as progress:
        found = report.inspect_bundle(
            bundle,
            signer,
            time.time(),
            expected_base=accepted.base_fingerprint if accepted else None,
            minimum_version=accepted.release_version if accepted else 0,
            report=progress,
        )
    description = found.description
    if found.bundle is not None:
        sampling = Sampling(
            secrets.randbits(SEED_BITS) if seed is None else seed,
            EVERY_VALUE if every_row else VALUES,
        )
        with terminal.progress("measuring") as progress:
            description = report.examine(found.bundle, description, sampling, progress)
    terminal.result(report.render(description), description)
    if found.refusal is not None:
        raise found.refusal
