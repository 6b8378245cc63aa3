"""`edge-client inspect`: what a release holds, who signed it, and every check once more."""

import time
from pathlib import Path

from offsite.edge_client.state import EdgeState
from offsite.emulator.bundle import report
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError


def inspect_bundle(bundle: Path, root: Path, terminal: Terminal) -> None:
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
    with terminal.progress("checking") as progress:
        found = report.inspect_bundle(bundle, signer, time.time(), report=progress)
    terminal.result(report.render(found.description), found.description)
    if found.refusal is not None:
        raise found.refusal
